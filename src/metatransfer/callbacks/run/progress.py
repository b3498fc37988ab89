"""The progress bar."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, closed before the report is printed: two live displays would overwrite each other."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged metrics, without the version number of the run."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar after a fit."""
        super().on_train_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "fit")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar after ``lightning validate``."""
        super().on_validation_end(trainer, pl_module)
        if trainer.validating:
            self.teardown(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar after ``lightning test``."""
        super().on_test_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "test")
