"""MAML with a learned inner optimiser."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.errors import UserError
from metatransfer.functional.meta import BatchNormPolicy, PlainRule, UpdateRule, momentum
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead

INNER = InnerLoop(steps=3, lr=0.1)


class LearnedOptimizerModule(MAMLModule):
    r"""Learns a rate and a momentum for the inner steps of each parameter tensor, together with the initialisation.

    .. math:: v \leftarrow \mu_l v + \nabla_l\mathcal L_{S_i}, \qquad \theta_l \leftarrow \theta_l - \alpha_l v, \qquad
              \alpha_l = e^{a_l},\quad \mu_l = \frac1{1+e^{-m_l}}

    Differentiates through gradient descent with momentum (Maclaurin, Duvenaud, Adams 2015, 1502.03492), on many tasks
    instead of one. Rates are learned as logarithms and momenta as logits, so that they stay in their ranges. The other
    arguments and the errors are those of :class:`MAMLModule`.

    Args:
        inner: the gradient steps on a support set; the rates :math:`\alpha` start at ``inner.lr``. Momentum has
            an effect from 2 steps on.
        momentum: initial value of the momenta :math:`\mu`, between 0 and 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        momentum: float = 0.5,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_unused(type(self).__name__, "its rates are learned", **{"inner.train_lr": inner.train_lr})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        if not 0 < momentum < 1:
            raise UserError(f"momentum must be above 0 and below 1, but is {momentum}.")
        one_each: dict[str, tuple[int, ...]] = {name: () for name in self.adapted_parameters()}
        self.log_rates = LearnedTensors(one_each, math.log(inner.lr))
        self.logit_momenta = LearnedTensors(one_each, math.log(momentum / (1 - momentum)))

    def update_rule(self) -> UpdateRule | PlainRule:
        """Momentum with the learned rates and momenta."""
        rates = {name: value.exp() for name, value in self.log_rates().items()}
        return momentum(rates, {name: value.sigmoid() for name, value in self.logit_momenta().items()})

    def protocol(self) -> dict[str, Any]:
        """Adds what is learned; ``inner_lr`` is the initial rate."""
        return super().protocol() | {"learned_rates": "per tensor", "learned_momenta": "per tensor"}
