"""Policies of fine-tuning, which can be combined."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from metatransfer.checks import check_fraction, check_not_negative, check_positive, did_you_mean
from metatransfer.errors import UserError
from metatransfer.methods.finetune.policy import FineTunePolicy, reinitialise
from metatransfer.nn.layers import Layer, LayerParameter


class Full(FineTunePolicy):
    """Trains everything from the start."""


class HeadOnly(FineTunePolicy):
    """Trains the head on features that stay as they are: a linear probe, by gradient descent."""

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The last layer alone."""
        return parameter.below_head == 0


class LastLayers(FineTunePolicy):
    """Trains the head and the last layers of the backbone (Yosinski et al. 2014, 1411.1792).

    Args:
        count: layers of the backbone that train.

    Raises:
        UserError: ``count`` is below 1, or there are not as many layers.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        check_positive(count=count)
        self.count = count

    def start(self, layers: Sequence[Layer]) -> None:
        """Checks the number.

        Raises:
            UserError: there are not as many layers.
        """
        if self.count > len(layers) - 1:
            raise UserError(
                f"LastLayers: count={self.count} is more than the backbone has, {len(layers) - 1} layers "
                f"({_names(layers[:-1])}): lower it, or take Full."
            )

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The last ones."""
        return parameter.below_head <= self.count


class GradualUnfreezing(FineTunePolicy):
    """Trains the head first, then one layer more at a time, from the top down (Howard, Ruder 2018, 1801.06146).

    Args:
        schedule: the epochs from which further layers train: the first number is that of the layer below the head, the
            second that of the one below it, and so on. Layers beyond the list train from its last epoch on.

    Raises:
        UserError: no epochs, a negative one, or one that is earlier than the one before it.
    """

    def __init__(self, schedule: list[int]) -> None:
        super().__init__()
        if not schedule or min(schedule) < 0 or sorted(schedule) != list(schedule):
            raise UserError(
                "GradualUnfreezing: schedule must list epochs from 0 on in rising order, such as [1, 2, 3], one for "
                f"each layer below the head, but is {schedule}."
            )
        self.schedule = list(schedule)

    def start(self, layers: Sequence[Layer]) -> None:
        """Checks the length.

        Raises:
            UserError: more epochs than layers.
        """
        if len(self.schedule) > len(layers) - 1:
            raise UserError(
                f"GradualUnfreezing: schedule has {len(self.schedule)} epochs, but the backbone {len(layers) - 1} "
                f"layers ({_names(layers[:-1])}): give at most one epoch for each."
            )

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The head, and what its epoch has come for."""
        below = parameter.below_head
        return below == 0 or epoch >= self.schedule[min(below, len(self.schedule)) - 1]


class LayerwiseLRDecay(FineTunePolicy):
    r"""Learning rates that fall from the head towards the input: :math:`\eta_l = \eta\,\gamma^{L-l}`.

    Discriminative fine-tuning of Howard and Ruder 2018 (1801.06146, with :math:`\gamma=1/2.6`), layer-wise decay of
    ELECTRA (Clark et al. 2020, 2003.10555) and BEiT.

    Args:
        factor: :math:`\gamma`, above 0 and at most 1; the head :math:`L` has the whole rate.

    Raises:
        UserError: a factor outside its range.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        check_positive(factor=factor)
        check_fraction(factor=factor)
        self.factor = factor

    def lr_scale(self, parameter: LayerParameter) -> float:
        """The power of the factor."""
        return float(self.factor**parameter.below_head)


class LayerwiseTransfer(FineTunePolicy):
    """Says layer by layer what is transferred (Yosinski et al. 2014, 1411.1792).

    Layers are named as the backbone names them; ``*`` stands for anything. What no list names is copied and trains.

    Args:
        frozen: layers that keep their weights.
        reinitialised: layers that start afresh and train.
        copied: layers that keep their weights and train; where given, all that no list names start afresh instead.

    Raises:
        UserError: a name that fits no layer, or a layer in two lists.
    """

    def __init__(
        self, frozen: list[str] | None = None, reinitialised: list[str] | None = None, copied: list[str] | None = None
    ) -> None:
        super().__init__()
        self.lists = {"frozen": frozen or [], "reinitialised": reinitialised or [], "copied": copied or []}
        self.rest = "copied" if copied is None else "reinitialised"

    def _kind(self, name: str) -> str:
        """The list that a layer stands in.

        Raises:
            UserError: in two.
        """
        found = [kind for kind, names in self.lists.items() if any(fnmatchcase(name, one) for one in names)]
        if len(found) > 1:
            raise UserError(f"LayerwiseTransfer: layer '{name}' is {found[0]} and {found[1]}: name it in one list.")
        return found[0] if found else self.rest

    def start(self, layers: Sequence[Layer]) -> None:
        """Gives those that start afresh new weights.

        Raises:
            UserError: a name that fits no layer, or a layer that cannot be initialised again.
        """
        names = [layer.name for layer in layers[:-1]]
        for wanted in [one for listed in self.lists.values() for one in listed]:
            if not any(fnmatchcase(name, wanted) for name in names):
                raise UserError(
                    f"LayerwiseTransfer: '{wanted}' fits no layer of the backbone{did_you_mean(wanted, names)} It has "
                    f"{_names(layers[:-1])}."
                )
        for layer in layers[:-1]:
            if self._kind(layer.name) == "reinitialised":
                reinitialise(layer)

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """All but the frozen ones; the head does."""
        return parameter.below_head == 0 or self._kind(parameter.layer.name) != "frozen"


class L2SP(FineTunePolicy):
    r"""Pulls the backbone towards where it started, and the head towards 0 (Li, Grandvalet, Davoine 2018, 1802.01483).

    .. math:: \Omega = \frac\alpha2\lVert w - w^0\rVert^2 + \frac\beta2\lVert w_{\text{head}}\rVert^2

    It takes the place of the optimiser's weight decay on the layers that it acts on. The starting point :math:`w^0` is
    part of the checkpoint.

    Args:
        alpha: :math:`\alpha`, of the backbone.
        beta: :math:`\beta`, of the head; at 0 the optimiser's weight decay acts there.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 0.01) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        self._keys: dict[str, str] = {}

    def start(self, layers: Sequence[Layer]) -> None:
        """Keeps the starting point."""
        for layer in layers[:-1]:
            for name, value in layer.parameters.items():
                self._keys[name] = name.replace(".", "/")
                self.register_buffer(self._keys[name], value.detach().clone())

    def decays(self, parameter: LayerParameter) -> bool:
        """Not where the penalty acts."""
        return parameter.below_head == 0 and self.beta == 0

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """Both terms; frozen parameters are where they started."""
        terms = [
            self.alpha / 2 * (value - getattr(self, self._keys[name])).square().sum()
            for layer in layers[:-1]
            for name, value in layer.parameters.items()
            if value.requires_grad
        ]
        terms += [self.beta / 2 * value.square().sum() for value in layers[-1].parameters.values() if self.beta]
        return torch.stack(terms).sum() if terms else None


def _names(layers: Sequence[Layer]) -> str:
    return ", ".join(layer.name for layer in layers)
