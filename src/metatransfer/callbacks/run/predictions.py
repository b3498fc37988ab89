"""Predictions as a CSV file."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from metatransfer.batches import Predictions
from metatransfer.callbacks.run.display import show
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_writable
from metatransfer.storage import csv_text, short_path, write_atomically


class PredictionWriter(Callback):
    """Writes the predictions of ``lightning predict`` to ``predictions.csv`` in the run's folder.

    The columns are the file or text, the predicted label and the probability of each label.

    Args:
        output: another path for the file.
    """

    def __init__(self, output: str | None = None) -> None:
        self.output = Path(output) if output is not None else None
        if self.output is not None:
            check_writable(self.output.parent, "the folder of output")
        self._collected: list[Predictions] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *args: object
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
        path = self.output or run_folder(trainer) / "predictions.csv"
        write_atomically(path, csv_text(rows))
        count = sum(len(part.files) for part in self._collected)
        self._collected.clear()
        show(f"{count} predictions written to {short_path(path)}")
