"""Lightning's hooks of validation and test, passed on to the evaluation of a method."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from metatransfer.errors import UserError
from metatransfer.methods.data_access import info_of
from metatransfer.methods.evaluation.base import Evaluation


class EvaluatedModule(LightningModule):
    """A module whose validation and test are done by its ``evaluation``."""

    evaluation: Evaluation

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ANN401
        """Scores a validation batch."""
        self.evaluation.step(self, batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ANN401
        """Scores a test batch."""
        self.evaluation.step(self, batch, "test", dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        """Resets the validation metrics."""
        self.evaluation.start("val")

    def on_test_epoch_start(self) -> None:
        """Resets the test metrics."""
        self.evaluation.start("test")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self.evaluation.finish(self, "val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self.evaluation.finish(self, "test")

    def on_fit_start(self) -> None:
        """Checks the monitored metrics."""
        info = info_of(self)
        watching = [
            (type(one).__name__, one.monitor)
            for one in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(one, ModelCheckpoint | EarlyStopping)
        ]
        watching += [
            (type(one.scheduler).__name__, one.monitor)
            for one in self.trainer.lr_scheduler_configs
            if one.reduce_on_plateau
        ]
        for name, metric in watching:
            obstacle = self.evaluation.obstacle(str(metric), info)
            if obstacle is not None:
                raise UserError(f"{name} monitors {metric}, {obstacle}")

    def on_train_start(self) -> None:
        """Discards the numbers of the sanity check."""
        self.evaluation.start("val")
