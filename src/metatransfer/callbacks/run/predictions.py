"""Predictions as a CSV file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from metatransfer.batches import Predictions
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.storage import csv_text, short_path, write_atomically


class PredictionWriter(Callback):
    """Writes the predictions of ``lightning predict`` to ``predictions.csv`` in the run's folder.

    The columns are the file, the predicted label and the probability of each label.
    """

    def __init__(self) -> None:
        self._collected: list[Predictions] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects predictions."""
        if isinstance(outputs, Predictions):
            self._collected.append(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file in the first process."""
        if not self._collected or not trainer.is_global_zero:
            return
        rows: list[list[object]] = [["file", "label", *(f"p({name})" for name in self._collected[0].classes)]]
        for part in self._collected:
            for file, row in zip(part.files, part.probabilities, strict=True):
                rows.append([file, part.classes[int(row.argmax())], *(f"{p:.6f}" for p in row.tolist())])
        path = run_folder(trainer) / "predictions.csv"
        write_atomically(path, csv_text(rows))
        count = sum(len(part.files) for part in self._collected)
        self._collected.clear()
        Console(markup=False).print(f"{count} predictions written to {short_path(path)}", soft_wrap=True)
