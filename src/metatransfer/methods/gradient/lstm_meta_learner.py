"""The LSTM meta-learner."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Inputs
from metatransfer.checks import check_count
from metatransfer.errors import UserError
from metatransfer.functional.meta import BatchNormPolicy, Params, RuleState, UpdateRule
from metatransfer.methods.gradient.base import AdaptedTasks
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, GatedUpdate, Head, LinearHead

INNER = InnerLoop(steps=5, lr=0.01, first_order=True)


class LSTMMetaLearnerModule(MAMLModule):
    r"""LSTM meta-learner (Ravi, Larochelle 2017, ICLR): the weights of a task are the cell state of an LSTM.

    .. math:: \theta_t = f_t\odot\theta_{t-1} - i_t\odot\nabla_{\theta_{t-1}}\mathcal L_{S}, \qquad
              \min_{\theta_0, \phi} \frac1T\sum_i \mathcal L_{Q_i}(\theta_{i,K})

    Learned gates :math:`i_t` (rates) and :math:`f_t` depend on the gradient, the loss, the weight and the last gate,
    see :class:`~metatransfer.nn.GatedUpdate`, which all weights share. Gradients and losses are preprocessed as by
    Andrychowicz et al. 2016 (1606.04474) and are constants for the outer loop, as in the paper. :math:`\theta_0`, the
    initial cell state, is learned along. With ``batch_norm="support"``, the default, no statistics pass from one query
    or one task to another. The other arguments and the errors are those of :class:`MAMLModule`.

    Args:
        inner: the steps on a support set; input gates start near ``inner.lr``, which must be below 1. Always first
            order. The paper takes 12 steps for 1 shot and 5 for 5 shots.
        hidden_size: size of the LSTM layer below the gates.
        forget: initial value of the forget gates.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        hidden_size: int = 20,
        forget: float = 0.99,
        batch_norm: BatchNormPolicy = "support",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_unused(type(self).__name__, "its rates are learned", **{"inner.train_lr": inner.train_lr})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        check_count(hidden_size=hidden_size)
        for name, value in (("inner.lr", inner.lr), ("forget", forget)):
            if not 0 < value < 1:
                raise UserError(f"{name} is the initial value of a gate and must be between 0 and 1, but is {value}.")
        self.rule = GatedUpdate(hidden_size, forget, inner.lr)

    def takes_constants(self) -> bool:
        """Always true."""
        return True

    def update_rule(self) -> UpdateRule:
        """The gated update of all weights, as one vector."""

        def update(
            params: Params, gradients: Params, state: RuleState, step: int, loss: Tensor
        ) -> tuple[Params, RuleState]:
            moved, state = self.rule(_vector(params), _vector(gradients), loss, state)
            parts = moved.split([value.numel() for value in params.values()])
            named = zip(params.items(), parts, strict=True)
            return {name: part.view(value.shape) for (name, value), part in named}, state

        return UpdateRule(lambda params: self.rule.start(_vector(params)), update, reads_loss=True)

    def fit_tasks(self, support_x: Inputs, support_y: Tensor) -> AdaptedTasks:
        """Runs the inner loop of every task; the LSTM's state, larger than the weights, is not kept."""
        return super().fit_tasks(support_x, support_y)._replace(memory=())

    def protocol(self) -> dict[str, Any]:
        """Adds what is learned; ``inner_lr`` is the initial rate."""
        return super().protocol() | {"learned_rates": "per weight and step, by an LSTM", "first_order": True}


def _vector(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])
