"""DAN."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.checks import check_choice, check_not_negative
from metatransfer.errors import UserError
from metatransfer.functional.domain.discrepancy import mmd
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation, Pair
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.nn import Backbone, Head, LinearHead

AdaptedLayer = Literal["features", "logits"]


class DANModule(DomainAdaptationModule):
    r"""Deep adaptation network (Long et al. 2015, 1502.02791): minimises the MMD of both domains with several kernels.

    .. math:: \mathcal T = \lambda \sum_{\ell} \widehat{\mathrm{MMD}}{}^2_k\bigl(z^s_\ell, z^t_\ell\bigr)

    :math:`z_\ell` are the features, the logits, or both, as the paper adapts the last layers of AlexNet; see
    :func:`metatransfer.functional.domain.discrepancy.mmd`. As in the paper, :math:`\lambda` is constant. The kernels
    are weighted equally; the paper learns their weights. The other arguments are those of
    :class:`DomainAdaptationModule`.

    Args:
        trade_off: :math:`\lambda`, 0 or more.
        layers: what is adapted, ``"features"``, ``"logits"`` or both; defaults to ``default_layers``.

    Attributes:
        default_layers: the default of ``layers``.

    Raises:
        UserError: ``trade_off`` below 0; no layer, an unknown one or one given twice; or an error of
            :class:`DomainAdaptationModule`.
    """

    default_layers: ClassVar[tuple[AdaptedLayer, ...]] = ("features", "logits")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        trade_off: float = 1.0,
        layers: Sequence[AdaptedLayer] | None = None,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, head, adaptation, optimizer, lr_scheduler)
        check_not_negative(trade_off=trade_off)
        layers = self.default_layers if layers is None else layers
        for layer in layers:
            check_choice("layers", layer, get_args(AdaptedLayer))
        if not layers or len(set(layers)) < len(layers):
            raise UserError(f"layers must name features, logits or both, each once, but is {list(layers)}.")
        self.trade_off, self.layers = trade_off, tuple(layers)

    def discrepancy(self, source: Tensor, target: Tensor) -> Tensor:
        """The discrepancy of one layer's outputs ``(N, d)`` and ``(M, d)``, a scalar."""
        return mmd(source, target)

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """The discrepancies of the adapted layers."""
        sides = {"features": (pair.source, pair.target), "logits": (pair.source_logits, pair.target_logits)}
        return self.trade_off * torch.stack([self.discrepancy(*sides[layer]) for layer in self.layers]).sum()

    def protocol(self) -> dict[str, Any]:
        """Adds the weight and the layers."""
        return super().protocol() | {"train_trade_off": self.trade_off, "train_layers": list(self.layers)}
