"""Training on the source only."""

from torch import Tensor

from metatransfer.methods.domain.adaptation import Pair
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.nn.blocks.domain_norm import Side


class SourceOnlyModule(DomainAdaptationModule):
    r"""Trains on the source and ignores the target: the reference that every adaptation must beat.

    .. math:: \min_{f, h}\ \frac1N\sum_i \mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr)

    The row "source only" in the tables of the field (Ganin et al. 2016, 1505.07818). With labelled target samples as
    the source, it is the row "target-trained".
    """

    uses_target = False

    @property
    def adapts(self) -> bool:
        """Whether statistics of the target are estimated."""
        return self.normalization == "adabn"

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features of samples, normalised as the source unless the target's statistics are estimated."""
        return super().encode(x, domain if self.normalization == "adabn" else "source")

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """``None``."""
        return None
