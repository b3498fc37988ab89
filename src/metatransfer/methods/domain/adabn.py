"""AdaBN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.methods.domain.schedules import Annealing
from metatransfer.methods.domain.source_only import SourceOnlyModule
from metatransfer.metrics.validators import Validator
from metatransfer.nn import Backbone, Head, LinearHead


class AdaBNModule(SourceOnlyModule):
    r"""Adaptive batch normalisation (Li et al. 2016, 1603.04779): the target is normalised by statistics of its own.

    .. math:: \mathrm{BN}_t(x) = \gamma\,\frac{x - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}} + \beta

    The network is trained on the source alone; before each evaluation of a fit every BatchNorm layer's
    :math:`\mu_t, \sigma_t^2` are estimated from all training samples of the target. Nothing else is adapted, and
    nothing has to be chosen.

    Args:
        backbone: a network with BatchNorm layers.
        num_classes: number of classes; on the command line taken from the data.
        head: makes the label predictor from ``(in_features, num_classes)``.
        validator: what chooses among the states of a run; ``InformationMaximization`` where left out.
        annealing: rate of each step by the progress of the run; in the place of ``lr_scheduler``.
        optimizer: makes the optimiser.
        lr_scheduler: makes a scheduler, stepped once an epoch.

    Raises:
        UserError: a network without BatchNorm layers that keep statistics, or two schedules of the rate.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        validator: Validator | None = None,
        annealing: Annealing | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            head=head,
            normalization="adabn",
            validator=validator,
            annealing=annealing,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
