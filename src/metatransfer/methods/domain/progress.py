"""Schedules that follow the progress of a run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.domain.schedules import Annealing


class ProgressModule(MethodModule):
    """A method that knows the fraction of its run that is done.

    Attributes:
        annealing: learning rate by the progress; ``None`` for none.
    """

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
        """The annealing scheduler of an optimizer; a constant rate if there is no annealing."""
        annealing, length = self.annealing, max(1.0, float(self.trainer.estimated_stepping_batches))
        return LambdaLR(optimizer, lambda step: annealing.factor(min(1.0, step / length)) if annealing else 1.0)
