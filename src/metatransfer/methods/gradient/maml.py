"""Model-agnostic meta-learning."""

from collections.abc import Callable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.batches import Inputs
from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.inputs import sample_axes
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.methods.gradient.base import AdaptedTasks, InnerLoopModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop
from metatransfer.nn import Backbone, Head, LinearHead

INNER = InnerLoop(steps=1, lr=0.4)


class MAMLModule(InnerLoopModule):
    r"""MAML (Finn, Abbeel, Levine 2017, 1703.03400): learns an initialisation for a few gradient steps per task.

    .. math:: \theta_i = \theta - \alpha\nabla_\theta \mathcal L_{S_i}(\theta), \qquad
              \min_\theta \frac1T\sum_i \mathcal L_{Q_i}(\theta_i)

    Query losses are averaged over tasks: cross-entropy for labels, squared error for float targets.

    Args:
        backbone: features.
        num_outputs: number of ways, or size of a regression target; on the command line taken from the data.
        head: creates the output layer from ``(in_features, out_features)``.
        inner: the gradient steps on a support set, with the learning rate :math:`\alpha`.
        batch_norm: which statistics BatchNorm uses: ``"transductive"`` (those of each batch, so queries are normalised
            by themselves, as in the paper), ``"support"`` (those of the support set, also for queries) or ``"running"``
            (running averages in evaluation, collected in training from the support sets with unadapted parameters;
            training uses batch statistics).
        execution: how the tasks of a meta-batch are computed.
        optimizer: creates the outer optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: an argument is out of range, or ``num_outputs`` is missing.
    """

    backbone: Backbone
    head: Head

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if num_outputs is None:
            raise UserError(
                f"{type(self).__name__} needs num_outputs, the number of ways or the size of a regression target: on "
                "the command line it follows data that serves episodes."
            )
        check_positive(num_outputs=num_outputs)
        network = {"backbone": backbone, "head": head(backbone.out_features, num_outputs)}
        super().__init__(network, inner, batch_norm, execution, optimizer, lr_scheduler)
        self.num_outputs = num_outputs

    def before_learning(self, support_x: Inputs) -> AdaptedTasks:
        """The weights before the first step."""
        tasks = sample_axes(support_x, 1)
        start = {name: value.expand(*tasks, *value.shape) for name, value in self.adapted_parameters().items()}
        return AdaptedTasks(start, support_x, 0)
