"""Policies that train a part of a network."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from metatransfer.checks import check_count, check_positive, did_you_mean
from metatransfer.errors import UserError
from metatransfer.methods.finetune.policies import FineTunePolicy, GradualUnfreezing
from metatransfer.nn.layers import Layer, LayerParameter

__all__ = ["BitFit", "LinearProbeThenFineTune", "PartialPolicy", "SurgicalFineTuning"]


class PartialPolicy(FineTunePolicy):
    """Base class of policies that train the head and a small part of the backbone.

    Args:
        adapter_only: whether checkpoints leave out the weights of the backbone that have never trained. They record
            the checksum of the pretrained weights, and can only be loaded over the same ones.
    """

    def __init__(self, adapter_only: bool = False) -> None:
        super().__init__()
        self.adapter_only = adapter_only
        self._trained: set[str] = set()  # names of parameters of the backbone

    def trains(self, parameter: LayerParameter, epoch: int) -> bool:
        """The part and the head."""
        return parameter.below_head == 0 or parameter.name in self._trained


class BitFit(PartialPolicy):
    """Trains the biases of the backbone and the head (Ben Zaken et al. 2022, 2106.10199).

    Args:
        adapter_only: see :class:`PartialPolicy`.

    Raises:
        UserError: the backbone has no biases.
    """

    def start(self, layers: Sequence[Layer]) -> None:
        """Finds the biases."""
        names = [name for layer in layers[:-1] for name in layer.parameters]
        self._trained = {name for name in names if name.rpartition(".")[2].endswith("bias")}
        if not self._trained:
            raise UserError("BitFit: the backbone has no biases to train: use LoRA or another policy.")


class SurgicalFineTuning(PartialPolicy):
    """Trains the head and the blocks of the backbone that are named (Lee et al. 2023, 2210.11466).

    The first block suits images that look different from those of the pretraining, the last one other classes.

    Args:
        block: name of a layer, of a part of the backbone that holds layers (``network.layer1``), or a pattern with
            ``*``; or a list of them.
        adapter_only: see :class:`PartialPolicy`.

    Raises:
        UserError: a name matches no layer.
    """

    def __init__(self, block: str | list[str], adapter_only: bool = False) -> None:
        super().__init__(adapter_only)
        self.blocks = [block] if isinstance(block, str) else list(block)

    def start(self, layers: Sequence[Layer]) -> None:
        """Finds the blocks."""
        names = [layer.name for layer in layers[:-1]]
        for wanted in self.blocks:
            found = [one for one in layers[:-1] if fnmatchcase(one.name, wanted) or one.name.startswith(f"{wanted}.")]
            if not found:
                raise UserError(
                    f"SurgicalFineTuning: '{wanted}' matches no layer of the backbone{did_you_mean(wanted, names)} Its "
                    f"layers are {', '.join(names)}."
                )
            self._trained |= {name for layer in found for name in layer.parameters}


class LinearProbeThenFineTune(GradualUnfreezing):
    """LP-FT: trains the head alone, then everything (Kumar et al. 2022, 2202.10054).

    A head that fits before the backbone changes distorts the pretrained features less.

    Args:
        probe_epochs: number of epochs in which only the head trains.
        factor: factor of the backbone's learning rate.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(self, probe_epochs: int, factor: float = 1.0) -> None:
        check_count(probe_epochs=probe_epochs)
        check_positive(factor=factor)
        super().__init__([probe_epochs])
        self.factor = factor

    def lr_scale(self, parameter: LayerParameter) -> float:
        """The factor, in the backbone."""
        return self.factor if parameter.below_head else 1.0
