"""Deep CORAL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.checks import check_choice, check_not_negative
from metatransfer.functional.domain.discrepancy import coral
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.methods.domain.dan import AdaptedLayer
from metatransfer.methods.domain.pairs import Pair
from metatransfer.nn import Backbone, Head, LinearHead


class DeepCORALModule(DomainAdaptationModule):
    r"""Deep correlation alignment (Sun and Saenko 2016, 1607.01719): aligns the covariances of both domains.

    .. math:: \mathcal T = \lambda\,\frac{1}{4d^2}\,\lVert C_s - C_t\rVert_F^2

    of the logits, the paper's last layer, or of the features. The paper chooses the constant :math:`\lambda` such that
    both losses are about equal at the end of training; both are logged.

    Args:
        backbone: the network.
        num_classes: number of classes; on the command line taken from the data.
        head: makes the label predictor from ``(in_features, num_classes)``.
        trade_off: :math:`\lambda`, 0 or more.
        layer: what is aligned, ``"logits"`` or ``"features"``.
        adaptation: see :class:`DomainAdaptationModule`.
        optimizer: see :class:`DomainAdaptationModule`.
        lr_scheduler: see :class:`DomainAdaptationModule`.

    Raises:
        UserError: ``trade_off`` below 0, an unknown ``layer``, or an error of :class:`DomainAdaptationModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        trade_off: float = 1.0,
        layer: AdaptedLayer = "logits",
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, head, adaptation, optimizer, lr_scheduler)
        check_not_negative(trade_off=trade_off)
        check_choice("layer", layer, get_args(AdaptedLayer))
        self.trade_off, self.layer = trade_off, layer

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """The distance of the covariances."""
        if self.layer == "features":
            return self.trade_off * coral(pair.source, pair.target)
        return self.trade_off * coral(pair.source_logits, pair.target_logits)

    def protocol(self) -> dict[str, Any]:
        """Adds the weight and the layer."""
        return super().protocol() | {"train_trade_off": self.trade_off, "train_layer": self.layer}
