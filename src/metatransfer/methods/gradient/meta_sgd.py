"""Meta-SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.functional.meta.batching import Batching
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.functional.meta.update_rules import PlainRule, UpdateRule, sgd
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead


class MetaSGDModule(MAMLModule):
    r"""Meta-SGD (Li, Zhou, Chen, Li 2017, 1707.09835): MAML that learns a rate for every single weight.

    .. math:: \theta_i = \theta - \alpha\odot\nabla_\theta \mathcal L_{S_i}(\theta), \qquad
              \min_{\theta,\alpha} \frac1T\sum_i \mathcal L_{Q_i}(\theta_i)

    :math:`\alpha` has the size of :math:`\theta` and may become negative: it learns direction as well as speed.

    Args:
        backbone: features.
        num_outputs: number of ways, or size of a regression target; on the command line taken from the data.
        head: makes the output layer from ``(in_features, out_features)``.
        inner_steps: gradient steps on a support set, in training and evaluation; the paper takes 1.
        inner_lr: what all rates :math:`\alpha` start from.
        train_inner_steps: steps in training, where they differ from ``inner_steps``.
        first_order: take the inner gradients as constants; the rates are learned all the same.
        batch_norm: as in :class:`MAMLModule`.
        batching: as in :class:`MAMLModule`.
        chunk_size: as in :class:`MAMLModule`.
        checkpoint: as in :class:`MAMLModule`.
        compile: as in :class:`MAMLModule`.
        max_inner_norm: as in :class:`MAMLModule`.
        optimizer: makes the outer optimiser, of weights and rates.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range, or ``num_outputs`` missing.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner_steps: int = 1,
        inner_lr: float = 0.01,
        train_inner_steps: int | None = None,
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
        super().__init__(
            backbone, num_outputs, head, inner_steps, inner_lr, train_inner_steps, None, first_order, batch_norm,
            batching, chunk_size, checkpoint, compile, max_inner_norm, optimizer, lr_scheduler,
        )  # fmt: skip
        self.rates = LearnedTensors({name: value.shape for name, value in self.adapted_parameters().items()}, inner_lr)

    def update_rule(self) -> UpdateRule | PlainRule:
        """Gradient descent at the learned rates."""
        return sgd(self.rates())

    def protocol(self) -> dict[str, Any]:
        """As of MAML; the rate is where the learned ones started."""
        return super().protocol() | {"learned_rates": "per weight"}
