"""Fine-tuning policies, which can be combined."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from metatransfer.arguments import RemembersArguments, as_call
from metatransfer.checks import check_fraction, check_not_negative, check_positive, did_you_mean
from metatransfer.errors import UserError
from metatransfer.methods.twins import reset
from metatransfer.nn.layers import Layer, LayerParameter

__all__ = [
    "L2SP", "FineTunePolicy", "Full", "GradualUnfreezing", "HeadOnly", "LastLayers", "LayerwiseLRDecay",
    "LayerwiseTransfer",
]  # fmt: skip


class FineTunePolicy(RemembersArguments, nn.Module):
    """Decides for each parameter of a network whether and how it trains in an epoch.

    Layers are counted from the input, see :func:`metatransfer.nn.layers_of`; the last one is the head. If policies are
    combined, a parameter trains if all of them allow it, rates are multiplied and penalties added. The methods of this
    class change nothing, so a policy overrides only what it needs.

    Attributes:
        adapter_only: whether checkpoints leave out the weights of the backbone that have never trained.
    """

    adapter_only: bool = False

    def __init__(self) -> None:
        super().__init__()

    def prepare(self, network: nn.Module) -> None:
        """Changes the network before its layers are listed, e.g. inserts adapters.

        It is also called before a checkpoint is loaded, so the names and shapes of the parameters must depend only on
        the network and the arguments of the policy.

        Args:
            network: has the submodules ``backbone``, with pretrained weights, and ``head``; both may be replaced.
        """

    def start(self, layers: Sequence[Layer]) -> None:
        """Is called once before training, with the layers of the backbone and the head."""

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """Whether a parameter trains in an epoch, from 0; must depend on nothing else, so that runs can be resumed."""
        return True

    def lr_scale(self, parameter: LayerParameter) -> float:
        """Factor of a parameter's learning rate."""
        return 1.0

    def decays(self, parameter: LayerParameter) -> bool:
        """Whether a parameter has weight decay."""
        return True

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """A scalar that is added to the training loss, or ``None``."""
        return None

    def protocol(self) -> str:
        """The name and arguments of the policy for the protocol card."""
        return as_call(self)


class Full(FineTunePolicy):
    """Trains everything from the start."""


class HeadOnly(FineTunePolicy):
    """Trains only the head: a linear probe."""

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """Only the head."""
        return parameter.below_head == 0


class LastLayers(FineTunePolicy):
    """Trains the head and the last layers of the backbone (Yosinski et al. 2014, 1411.1792).

    Args:
        count: number of backbone layers that train.

    Raises:
        UserError: ``count`` is below 1, or above the number of layers.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        check_positive(count=count)
        self.count = count

    def start(self, layers: Sequence[Layer]) -> None:
        """Checks ``count``."""
        if self.count > len(layers) - 1:
            raise UserError(
                f"LastLayers: count={self.count}, but the backbone has only {len(layers) - 1} layers "
                f"({_names(layers[:-1])}): lower count, or use Full."
            )

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The last ``count`` layers and the head."""
        return parameter.below_head <= self.count


class GradualUnfreezing(FineTunePolicy):
    """Trains the head first and unfreezes one layer at a time, from the top down (Howard, Ruder 2018, 1801.06146).

    Args:
        schedule: the epochs in which layers are unfrozen, starting with the layer below the head. All remaining layers
            are unfrozen in the last of these epochs.

    Raises:
        UserError: ``schedule`` is empty, not increasing, or has a negative epoch.
    """

    def __init__(self, schedule: list[int]) -> None:
        super().__init__()
        if not schedule or min(schedule) < 0 or sorted(schedule) != list(schedule):
            raise UserError(
                "GradualUnfreezing: schedule must be a list of epochs from 0 in increasing order, such as [1, 2, 3], "
                f"one for each layer below the head, but is {schedule}."
            )
        self.schedule = list(schedule)

    def start(self, layers: Sequence[Layer]) -> None:
        """Checks the length of the schedule."""
        if len(self.schedule) > len(layers) - 1:
            raise UserError(
                f"GradualUnfreezing: schedule has {len(self.schedule)} epochs, but the backbone has only "
                f"{len(layers) - 1} layers ({_names(layers[:-1])}): use at most one epoch per layer."
            )

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The head and all layers unfrozen so far."""
        below = parameter.below_head
        return below == 0 or epoch >= self.schedule[min(below, len(self.schedule)) - 1]


class LayerwiseLRDecay(FineTunePolicy):
    r"""Learning rates that decrease from the head towards the input: :math:`\eta_l = \eta\,\gamma^{L-l}`.

    Discriminative fine-tuning of Howard and Ruder 2018 (1801.06146, with :math:`\gamma=1/2.6`), layer-wise decay of
    ELECTRA (Clark et al. 2020, 2003.10555) and BEiT.

    Args:
        factor: :math:`\gamma`, above 0 and at most 1; the head :math:`L` has the full rate.

    Raises:
        UserError: ``factor`` is out of range.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        check_positive(factor=factor)
        check_fraction(factor=factor)
        self.factor = factor

    def lr_scale(self, parameter: LayerParameter) -> float:
        r""":math:`\gamma^{L-l}`."""
        return float(self.factor**parameter.below_head)


class LayerwiseTransfer(FineTunePolicy):
    """Chooses layer by layer what is transferred (Yosinski et al. 2014, 1411.1792).

    Lists hold names of backbone layers, with ``*`` as a wildcard. Layers in no list are copied and train.

    Args:
        frozen: layers that keep their pretrained weights.
        reinitialised: layers that get random weights and train.
        copied: layers that start from the pretrained weights and train. If given, layers in no list are reinitialised.

    Raises:
        UserError: a name matches no layer, or a layer is in two lists.
    """

    def __init__(
        self, frozen: list[str] | None = None, reinitialised: list[str] | None = None, copied: list[str] | None = None
    ) -> None:
        super().__init__()
        self.lists = {"frozen": frozen or [], "reinitialised": reinitialised or [], "copied": copied or []}
        self.rest = "copied" if copied is None else "reinitialised"

    def _kind(self, name: str) -> str:
        """The list of a layer, in which each name of a layer may occur once."""
        found = [kind for kind, names in self.lists.items() if any(fnmatchcase(name, one) for one in names)]
        if len(found) > 1:
            raise UserError(
                f"LayerwiseTransfer: layer '{name}' is both {found[0]} and {found[1]}: name it in one list."
            )
        return found[0] if found else self.rest

    def start(self, layers: Sequence[Layer]) -> None:
        """Reinitialises layers."""
        names = [layer.name for layer in layers[:-1]]
        for wanted in [one for listed in self.lists.values() for one in listed]:
            if not any(fnmatchcase(name, wanted) for name in names):
                raise UserError(
                    f"LayerwiseTransfer: '{wanted}' matches no layer of the backbone{did_you_mean(wanted, names)} Its "
                    f"layers are {_names(layers[:-1])}."
                )
        for layer in layers[:-1]:
            if self._kind(layer.name) == "reinitialised":
                owners = [part for module in layer.modules for part in module.modules() if part._parameters]
                reset(owners, f"layer '{layer.name}'", layer.parameters)

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The head and all layers that are not frozen."""
        return parameter.below_head == 0 or self._kind(parameter.layer.name) != "frozen"


class L2SP(FineTunePolicy):
    r"""Penalises the distance from the pretrained weights (Li, Grandvalet, Davoine 2018, 1802.01483).

    .. math:: \Omega = \frac\alpha2\lVert w - w^0\rVert^2 + \frac\beta2\lVert w_{\text{head}}\rVert^2

    It replaces weight decay on the layers that it penalises. The pretrained weights :math:`w^0` are part of the
    checkpoint.

    Args:
        alpha: :math:`\alpha` of the backbone.
        beta: :math:`\beta` of the head; with 0 the head has weight decay instead.

    Raises:
        UserError: a number is negative.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 0.01) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        self._keys: dict[str, str] = {}

    def start(self, layers: Sequence[Layer]) -> None:
        """Stores the pretrained weights."""
        for name, value in (pair for layer in layers[:-1] for pair in layer.parameters.items()):
            self._keys[name] = name.replace(".", "/")
            self.register_buffer(self._keys[name], value.detach().clone())

    def decays(self, parameter: LayerParameter) -> bool:
        """Only parameters without a penalty."""
        return parameter.below_head == 0 and self.beta == 0

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """The sum of both terms; that of frozen parameters is 0."""
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
