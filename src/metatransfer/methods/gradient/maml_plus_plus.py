"""MAML++."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_not_negative
from metatransfer.errors import UserError
from metatransfer.functional.meta import BatchNormPolicy, Params, PlainRule, UpdateRule, batch_norm_layers, sgd
from metatransfer.methods.gradient.base import AdaptedTasks
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead


@dataclass(frozen=True)
class OuterSchedule:
    """Training schedule of MAML++.

    Attributes:
        loss_annealing_epochs: number of epochs with a loss over all inner steps; then only the last step counts.
        first_order_epochs: number of first epochs without second derivatives.

    Raises:
        UserError: a number is negative.
    """

    loss_annealing_epochs: int = 10
    first_order_epochs: int = 0

    def __post_init__(self) -> None:
        names = "loss_annealing_epochs", "first_order_epochs"
        check_not_negative(**{f"schedule.{name}": getattr(self, name) for name in names})


INNER, SCHEDULE = InnerLoop(steps=5, lr=0.1), OuterSchedule()


class MAMLPlusPlusModule(MAMLModule):
    r"""MAML++ (Antoniou, Edwards, Storkey 2019, 1810.09502): MAML with more stable training.

    .. math:: \theta_i^{(t+1)} = \theta_i^{(t)} - \alpha_{l,t}\nabla\mathcal L_{S_i}(\theta_i^{(t)}), \qquad
              \min_{\theta,\alpha} \frac1T\sum_i\sum_{t=1}^{K} v_t\,\mathcal L_{Q_i}(\theta_i^{(t)})

    - Multi-step loss: all weights :math:`v_t` start at :math:`1/K`. Over ``schedule.loss_annealing_epochs`` those of
      the earlier steps fall to :math:`0.03/K`, and the last step gets the rest. Then only the last step counts.
    - A learned rate for each parameter tensor and step.
    - BatchNorm with a scale and a shift for each step, which only the outer loop trains.
    - First order for ``schedule.first_order_epochs``, then second order.
    - Cosine annealing of the outer rate: ``lr_scheduler: CosineAnnealingLR``.

    The per-step running statistics of the paper, which its code collects but never uses, are left out. The other
    arguments and the errors are those of :class:`MAMLModule`.

    Args:
        inner: the gradient steps on a support set, at least 1 in training (:math:`K`, 5 in the paper); the rates
            :math:`\alpha` start at ``inner.lr``. Additional steps in evaluation use the rates of the last one.
        schedule: when the multi-step loss ends and second order begins.
        per_step_batch_norm: learn scale and shift of BatchNorm for each step.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        schedule: OuterSchedule = SCHEDULE,
        per_step_batch_norm: bool = True,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        name = type(self).__name__
        check_unused(name, "its rates are learned", **{"inner.train_lr": inner.train_lr})
        check_unused(name, "set schedule.first_order_epochs", **{"inner.first_order": inner.first_order})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        steps = inner.steps_in(True)
        if steps < 1:
            raise UserError(f"{name} needs at least 1 inner step in training, but has {steps}: raise inner.steps.")
        self.schedule = schedule
        affine = _affine(self.network) if per_step_batch_norm else {}
        self.per_step = nn.ModuleDict()
        for part in ("weight", "bias"):
            values = {name: value for name, value in affine.items() if name.endswith(f".{part}")}
            if values:
                self.per_step[part] = _at_each_step(values, steps, initial=float(part == "weight"))
        self._per_step_names = set(affine)
        for value in affine.values():  # replaced by the values of each step
            value.requires_grad_(False)
        self.rates = LearnedTensors({name: (steps,) for name in self.adapted_parameters()}, inner.lr)

    def adapted_parameters(self) -> Params:
        """All that are not frozen, without per-step scales and shifts of BatchNorm."""
        found = super().adapted_parameters()
        return {name: value for name, value in found.items() if name not in self._per_step_names}

    def update_rule(self) -> UpdateRule | PlainRule:
        """Gradient descent at the learned rate of each tensor and step."""
        rates = self.rates()
        return sgd([{name: rate[step] for name, rate in rates.items()} for step in range(self.inner.steps_in(True))])

    def parameters_at(self, step: int) -> Params:
        """Scale and shift of BatchNorm at a step."""
        step = min(step, self.inner.steps_in(True) - 1)
        return {name: values[step] for part in self.per_step.values() for name, values in part().items()}

    def takes_constants(self) -> bool:
        """In training, for the first epochs."""
        return self.training and self.current_epoch < self.schedule.first_order_epochs

    def learns_from_all_steps(self) -> bool:
        """In training, until only the last step counts."""
        return self.training and self.current_epoch < self.schedule.loss_annealing_epochs

    def step_weights(self) -> list[float]:
        """The weights :math:`v_t` of the query losses after each step in this epoch; they sum to 1."""
        steps = self.inner.steps_in(True)
        if self.current_epoch >= self.schedule.loss_annealing_epochs:
            return [0.0] * (steps - 1) + [1.0]
        left = 1 - self.current_epoch / self.schedule.loss_annealing_epochs
        earlier = max(left, 0.03) / steps
        return [earlier] * (steps - 1) + [1 - earlier * (steps - 1)]

    def outer_loss(self, states: list[AdaptedTasks], episode: Episode) -> tuple[Tensor, Any]:
        """The query losses after each step, weighted; the outputs are those after the last."""
        if len(states) == 1:
            return super().outer_loss(states, episode)
        loss, outputs = torch.zeros((), device=episode.query_y.device), None
        for state, weight in zip(states[1:], self.step_weights(), strict=True):
            own, outputs = super().outer_loss([state], episode)
            loss = loss + weight * own
        return loss, outputs

    def compile_key(self) -> Hashable:
        """Adds the weights of the steps."""
        return super().compile_key(), tuple(self.step_weights())

    def protocol(self) -> dict[str, Any]:
        """Adds the learned rates and the schedule; ``inner_lr`` is the initial rate."""
        return super().protocol() | {
            "learned_rates": "per tensor and step",
            "loss_annealing_epochs": self.schedule.loss_annealing_epochs,
            "first_order_epochs": self.schedule.first_order_epochs,
            "per_step_batch_norm": bool(self.per_step),
        }


def _affine(network: nn.Module) -> Params:
    """Scale and shift of the BatchNorm layers that are not frozen, by name."""
    return {
        f"{name}.{part}": value
        for name, layer in batch_norm_layers(network).items()
        for part, value in layer.named_parameters(recurse=False)
        if value.requires_grad
    }


def _at_each_step(values: Params, steps: int, initial: float) -> LearnedTensors:
    """Copies of ``values``, which may be pretrained, for each step along a leading axis."""
    found = LearnedTensors({name: (steps, *value.shape) for name, value in values.items()}, initial)
    with torch.no_grad():
        for name, each in found().items():
            each.copy_(values[name].expand_as(each))
    return found
