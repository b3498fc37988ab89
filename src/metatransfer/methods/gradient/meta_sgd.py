"""Meta-SGD."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from metatransfer.functional.meta import BatchNormPolicy, PlainRule, UpdateRule, sgd
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead

INNER = InnerLoop(steps=1, lr=0.01)


class MetaSGDModule(MAMLModule):
    r"""Meta-SGD (Li, Zhou, Chen, Li 2017, 1707.09835): MAML with a learned rate for every weight.

    .. math:: \theta_i = \theta - \alpha\odot\nabla_\theta \mathcal L_{S_i}(\theta), \qquad
              \min_{\theta,\alpha} \frac1T\sum_i \mathcal L_{Q_i}(\theta_i)

    :math:`\alpha` has the shape of :math:`\theta` and may become negative. The other arguments and errors are those of
    :class:`MAMLModule`.

    Args:
        inner: the gradient steps on a support set; all rates :math:`\alpha` start at ``inner.lr``. The paper
            uses 1 step.
    """

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
        check_unused(type(self).__name__, "its rates are learned", **{"inner.train_lr": inner.train_lr})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        shapes = {name: value.shape for name, value in self.adapted_parameters().items()}
        self.rates = LearnedTensors(shapes, inner.lr)

    def update_rule(self) -> UpdateRule | PlainRule:
        """Gradient descent at the learned rates."""
        return sgd(self.rates())

    def protocol(self) -> dict[str, Any]:
        """Adds the learned rates; ``inner_lr`` is the initial rate."""
        return super().protocol() | {"learned_rates": "per weight"}
