"""Model-agnostic meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.batching import Batching
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.methods.gradient.base import InnerLoopModule
from metatransfer.nn import Backbone, Head, LinearHead


class MAMLModule(InnerLoopModule):
    r"""MAML (Finn, Abbeel, Levine 2017, 1703.03400): an initialisation from which a few gradient steps learn a task.

    .. math:: \theta_i = \theta - \alpha\nabla_\theta \mathcal L_{S_i}(\theta), \qquad
              \min_\theta \frac1T\sum_i \mathcal L_{Q_i}(\theta_i)

    Query losses are averaged over tasks. The targets' type chooses cross-entropy (labels) or squared error (floats).

    Args:
        backbone: features.
        num_outputs: number of ways, or size of a regression target; on the command line taken from the data.
        head: makes the output layer from ``(in_features, out_features)``.
        inner_steps: gradient steps on a support set, in training and evaluation.
        inner_lr: their rate :math:`\alpha`.
        train_inner_steps: steps in training, where they differ from ``inner_steps``.
        train_inner_lr: rate in training, where it differs from ``inner_lr``.
        first_order: take the inner gradients as constants (FOMAML): cheaper, usually a little worse.
        batch_norm: whose statistics BatchNorm uses: ``"transductive"`` (of the batch at hand, queries by themselves, as
            in the paper), ``"support"`` (of the support set, for its queries too) or ``"running"`` (in evaluation
            running averages, which training collects of the support sets under the unadapted parameters; training
            itself normalises by batch).
        batching: ``"loop"`` over tasks, ``"threads"`` as many at once as there are threads, ``"vmap"`` all as one
            larger operation, or ``"auto"``: what was measured to be faster, see
            :func:`metatransfer.functional.choose_batching`.
        chunk_size: with vmap, tasks at a time; all where left out.
        checkpoint: recompute the inner steps in the backward pass instead of keeping them: slower, but of each step
            only the parameters are kept.
        compile: compile the training step, inner loop and outer gradient in one, for the size of its meta-batches. It
            takes 8 to 20 seconds at the start and makes small fully connected networks about five times as fast;
            convolutions on a CPU gain nothing. Outputs of layers are not available to hooks.
        max_inner_norm: largest norm of the gradients of a task in an inner step; no limit where left out.
        optimizer: makes the outer optimiser.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range, or ``num_outputs`` missing.
    """

    backbone: Backbone
    head: Head

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner_steps: int = 1,
        inner_lr: float = 0.4,
        train_inner_steps: int | None = None,
        train_inner_lr: float | None = None,
        first_order: bool = False,
        batch_norm: BatchNormPolicy = "transductive",
        batching: Literal["auto"] | Batching = "auto",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        compile: bool = False,
        max_inner_norm: float | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if num_outputs is None:
            raise UserError(
                f"{type(self).__name__} needs num_outputs: the number of ways of its episodes, or the size of a "
                "regression target."
            )
        check_positive(num_outputs=num_outputs)
        network = {"backbone": backbone, "head": head(backbone.out_features, num_outputs)}
        super().__init__(
            network, inner_steps, inner_lr, train_inner_steps, train_inner_lr, first_order, batch_norm, batching,
            chunk_size, checkpoint, compile, max_inner_norm, optimizer, lr_scheduler,
        )  # fmt: skip
        self.num_outputs = num_outputs
