"""What adaptation methods share: arguments, schedules over the progress of a run, and statistics of the target."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from metatransfer.arguments import RemembersArguments
from metatransfer.batches import DomainBatch, LabelledBatch
from metatransfer.checks import check_choice, check_labelled_batch, check_not_negative
from metatransfer.data_info import datamodule_of
from metatransfer.errors import UserError
from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.evaluation.on_target import REMEDY
from metatransfer.methods.given import floating_dtype
from metatransfer.metrics.validators import Validator
from metatransfer.nn import Backbone
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm, reestimate_target_statistics

Normalization = Literal["joint", "separate", "domain_specific", "adabn"]


class Annealing(RemembersArguments):
    r"""The learning rate of DANN: :math:`\mu_p = \mu_0\,(1 + \alpha p)^{-\beta}` (Ganin et al. 2016, 1505.07818).

    :math:`p` is the fraction of the run's steps done so far; the rate changes with every step.

    Args:
        alpha: speed of the decay.
        beta: exponent of the decay.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, alpha: float = 10.0, beta: float = 0.75) -> None:
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def factor(self, progress: float) -> float:
        """The factor of the initial rate at a progress from 0 to 1."""
        return float((1 + self.alpha * progress) ** -self.beta)

    def __repr__(self) -> str:
        return f"Annealing(alpha={self.alpha}, beta={self.beta})"


@dataclass(frozen=True)
class Ramp:
    r"""The strength of an adversary: :math:`\lambda\,(2/(1+e^{-\gamma p}) - 1)` (Ganin et al. 2016, 1505.07818).

    Attributes:
        max_lambda: :math:`\lambda`, the limit of the strength.
        gamma: speed of the rise.

    Raises:
        UserError: a negative number.
    """

    max_lambda: float = 1.0
    gamma: float = 10.0

    def __post_init__(self) -> None:
        check_not_negative(max_lambda=self.max_lambda, gamma=self.gamma)

    def at(self, progress: float) -> float:
        """The strength at a progress from 0 to 1; 0 at the start."""
        return self.max_lambda * (2 / (1 + math.exp(-self.gamma * progress)) - 1)


@dataclass(frozen=True)
class Adaptation:
    """Arguments shared by all adaptation methods: BatchNorm across domains, selection without labels, learning rate.

    Attributes:
        normalization: BatchNorm statistics in training: ``"joint"`` over both domains, ``"separate"`` by domain with
            common running statistics, ``"domain_specific"`` layers (1906.03950), or ``"adabn"``, common scales and
            shifts with statistics estimated from all samples of the target (1603.04779). Defaults to that of the
            method.
        validator: selects the best state of a run; defaults to ``InformationMaximization``.
        annealing: learning rate of each step by the progress of the run, instead of an ``lr_scheduler``.

    Raises:
        UserError: unknown ``normalization``.
    """

    normalization: Normalization | None = None
    validator: Validator | None = None
    annealing: Annealing | None = None

    def __post_init__(self) -> None:
        if self.normalization is not None:
            check_choice("normalization", self.normalization, get_args(Normalization))


class Pair(NamedTuple):
    """Outputs of a network for a training batch.

    Attributes:
        source: ``(N, E)`` features.
        target: ``(M, E)`` features.
        source_logits: ``(N, C)``.
        target_logits: ``(M, C)``.
        batch: the batch.
    """

    source: Tensor
    target: Tensor
    source_logits: Tensor
    target_logits: Tensor
    batch: DomainBatch


RAMP, DEFAULT = Ramp(), Adaptation()


class DomainRun(SampleClassifier):
    """A classifier that knows the progress of its run and, with ``"adabn"``, estimates the target's statistics.

    Attributes:
        annealing: learning rate by the progress; ``None`` for none.
        normalization: see :class:`Adaptation`.
    """

    backbone: Backbone
    normalization: str
    annealing: Annealing | None = None
    _total_batches = 0.0

    @property
    def progress(self) -> float:
        """The fraction of the run's training batches that are done, from 0 to 1; it continues after a resume."""
        if not self._total_batches or self._trainer is None:
            return 1.0
        # not those that were begun: a batch that was interrupted is trained on again
        return min(1.0, self._trainer.fit_loop.epoch_loop.batch_progress.total.completed / self._total_batches)

    def run_length(self) -> float:
        """The number of training batches of the whole run."""
        trainer = self.trainer
        if not self.automatic_optimization and trainer.max_steps != -1:
            raise UserError(
                f"{type(self).__name__} steps several optimisers for each batch, so that max_steps does not count "
                "batches: set trainer.max_epochs, and limit_train_batches for a shorter epoch."
            )
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                f"{type(self).__name__}'s schedules follow the run's progress, which needs an end: set "
                "trainer.max_epochs or trainer.max_steps."
            )
        batches = float(steps * trainer.accumulate_grad_batches)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:  # the last step of an epoch may hold fewer
            batches = min(batches, float(trainer.max_epochs * trainer.num_training_batches))
        return batches

    def on_fit_start(self) -> None:
        """Determines the length of the run."""
        super().on_fit_start()
        self._total_batches = self.run_length()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adds the annealing."""
        if self.annealing is None:
            return super().configure_optimizers()
        found: Any = super().configure_optimizers()
        return {"optimizer": found, "lr_scheduler": {"scheduler": self.annealed(found), "interval": "step"}}

    def annealed(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The annealing scheduler of an optimiser; a constant rate if there is no annealing."""
        annealing, length = self.annealing, max(1.0, float(self.trainer.estimated_stepping_batches))
        return LambdaLR(optimizer, lambda step: annealing.factor(min(1.0, step / length)) if annealing else 1.0)

    def check_pair(self, batch: object) -> None:
        """Raises an error unless a training batch fits the method."""
        if not isinstance(batch, DomainBatch):
            raise UserError(
                f"{type(self).__name__} learns from pairs of source and target samples, but the data module serves "
                f"{type(batch).__name__}: {REMEDY}."
            )
        if batch.source_x.shape[1:] != batch.target_x.shape[1:]:
            raise UserError(
                f"samples of the source have shape {tuple(batch.source_x.shape[1:])}, those of the target "
                f"{tuple(batch.target_x.shape[1:])}: convert both to one shape."
            )
        self.check_samples(batch.source_x)
        self.check_samples(batch.target_x)
        check_labelled_batch(LabelledBatch(batch.source_x, batch.source_y), self.num_classes)
        if self._total_batches > 1 and not self.trainer.global_step:  # a later batch may cross the end of a pass
            _warn_of_repetition("batch_size", batch.source_number)
            _warn_of_repetition("target_batch_size", batch.target_number)

    @property
    def needs_data_module(self) -> bool:
        """Whether a data module is required, because statistics of all target samples are estimated."""
        return self.normalization == "adabn"

    def on_validation_start(self) -> None:
        """Updates the target's statistics during a fit."""
        if self.normalization == "adabn" and self.trainer.state.fn == TrainerFn.FITTING:
            self.estimate_target_statistics()

    def on_train_end(self) -> None:
        """Updates the target's statistics, for a fit without validation."""
        super().on_train_end()
        if self.normalization == "adabn":
            self.estimate_target_statistics()

    def estimate_target_statistics(self) -> None:
        """Estimates the BatchNorm statistics of the target from its training samples."""
        kind, shown = floating_dtype(self.backbone), datamodule_of(self).target_samples(shuffled=True)
        reestimate_target_statistics(self.backbone, (part.x.to(self.device, kind) for part in shown))
        if self.trainer.world_size > 1:  # each process has seen its share
            for layer in (part.target for part in self.backbone.modules() if isinstance(part, DomainBatchNorm)):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))


def _warn_of_repetition(argument: str, number: Tensor) -> None:
    count = len(set(number.tolist()))
    if count < len(number):
        rank_zero_warn(
            f"{argument} is {len(number)}, but there are only {count} such training samples, so each batch repeats "
            f"some: set data.{argument} to {count} or less; the smaller it is, the more steps an epoch has."
        )


def gradient_ratio(loss: Tensor, added: Tensor, source: Tensor, target: Tensor) -> Tensor | None:
    """The norm of an added loss's gradient at the features, relative to that of the label loss."""
    norms = []
    for value in (loss, added) if source.requires_grad else ():
        if not value.requires_grad:
            return None
        found = torch.autograd.grad(value, [source, target], retain_graph=True, allow_unused=True)
        parts = [part.float().pow(2).sum() for part in found if part is not None]
        if not parts:
            return None
        norms.append(torch.stack(parts).sum().sqrt())
    return norms[1] / norms[0].clamp_min(1e-12) if norms else None
