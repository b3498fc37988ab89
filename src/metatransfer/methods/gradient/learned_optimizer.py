"""MAML whose inner optimiser is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.errors import UserError
from metatransfer.functional.meta.batching import Batching
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.functional.meta.update_rules import PlainRule, UpdateRule, momentum
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead


class LearnedOptimizerModule(MAMLModule):
    r"""Learns the rate and the momentum of its inner steps, a pair for each parameter tensor, and what they start from.

    .. math:: v \leftarrow \mu_l v + \nabla_l\mathcal L_{S_i}, \qquad \theta_l \leftarrow \theta_l - \alpha_l v, \qquad
              \alpha_l = e^{a_l},\quad \mu_l = \frac1{1+e^{-m_l}}

    Gradient descent with momentum, differentiated through, whose numbers are learned as logarithm and logit, so that
    they stay where they have a meaning: Maclaurin, Duvenaud, Adams 2015 (1502.03492), on many tasks instead of one.

    Args:
        backbone: features.
        num_outputs: as in :class:`MAMLModule`.
        head: as in :class:`MAMLModule`.
        inner_steps: gradient steps on a support set, in training and evaluation; momentum needs 2 to show.
        inner_lr: what the rates :math:`\alpha` start from.
        momentum: what the momenta :math:`\mu` start from, above 0 and below 1.
        train_inner_steps: steps in training, where they differ from ``inner_steps``.
        first_order: take the inner gradients as constants; the optimiser is learned all the same.
        batch_norm: as in :class:`MAMLModule`.
        batching: as in :class:`MAMLModule`.
        chunk_size: as in :class:`MAMLModule`.
        checkpoint: as in :class:`MAMLModule`.
        compile: as in :class:`MAMLModule`.
        max_inner_norm: as in :class:`MAMLModule`.
        optimizer: makes the outer optimiser, of weights and inner optimiser.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range, or ``num_outputs`` missing.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner_steps: int = 3,
        inner_lr: float = 0.1,
        momentum: float = 0.5,
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
        if not 0 < momentum < 1:
            raise UserError(f"momentum must be above 0 and below 1 to be learned, but is {momentum}.")
        one_each: dict[str, tuple[int, ...]] = {name: () for name in self.adapted_parameters()}
        self.log_rates = LearnedTensors(one_each, math.log(inner_lr))
        self.logit_momenta = LearnedTensors(one_each, math.log(momentum / (1 - momentum)))

    def update_rule(self) -> UpdateRule | PlainRule:
        """Momentum with the learned numbers."""
        rates = {name: value.exp() for name, value in self.log_rates().items()}
        return momentum(rates, {name: value.sigmoid() for name, value in self.logit_momenta().items()})

    def protocol(self) -> dict[str, Any]:
        """As of MAML; the rate is where the learned ones started."""
        return super().protocol() | {"learned_rates": "per tensor", "learned_momenta": "per tensor"}
