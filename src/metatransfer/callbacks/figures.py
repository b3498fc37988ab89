"""Figures of a run, as PNG files and in TensorBoard."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.run_folder import run_folder
from metatransfer.checks import check_not_negative
from metatransfer.methods.base import MethodModule
from metatransfer.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Figures(Callback):
    """Draws the last evaluation and the learning curve of a fit into ``figures`` in the run's folder and TensorBoard.

    The method's evaluation defines the figures. Few-shot tasks give ``<stage>_episode.png`` (a task with predictions
    and mistakes, or true and learned curves) and ``adaptation.png`` (the score after each inner step). Classifiers give
    ``<stage>_confusion.png``, ``<stage>_calibration.png``, ``<stage>_mistakes.png`` and the table
    ``<stage>_classes.csv``. ``learning_curve.png`` compares the validations of a fit with the baselines.

    Args:
        mistakes: number of wrong predictions to show.

    Raises:
        UserError: ``mistakes`` is negative.
    """

    def __init__(self, mistakes: int = 12) -> None:
        check_not_negative(mistakes=mistakes)
        self.mistakes = mistakes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the folder in all processes."""
        run_folder(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws ``lightning validate``, and each validation of a fit if the evaluation asks for it."""
        often = isinstance(pl_module, MethodModule) and pl_module.evaluation.draws_every_validation
        if trainer.state.fn == TrainerFn.VALIDATING or (often and not trainer.sanity_checking):
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws ``lightning test``."""
        self._draw(trainer, pl_module, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation of a fit."""
        if isinstance(pl_module, MethodModule) and not pl_module.evaluation.draws_every_validation:
            self._draw(trainer, pl_module, "val")

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(module, MethodModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        evaluation = module.evaluation
        figures = evaluation.figures(module, stage, self.mistakes)  # all processes take part
        if not trainer.is_global_zero:
            return
        curve = learning_curve(trainer, evaluation.score_name)
        if curve is not None:
            figures["learning_curve"] = curve
        if figures:
            publish_figures(trainer, figures)
        for name, text in evaluation.tables(module, stage).items():
            write_atomically(run_folder(trainer) / name, text)


def learning_curve(trainer: Trainer, name: str) -> "Figure | None":
    """A figure of the validations of a fit and the baselines; ``None`` with fewer than two validations."""
    report: Any = next((one for one in trainer.callbacks if isinstance(one, Report)), None)  # type: ignore[attr-defined]
    points = [(entry["step"], entry["metrics"].get(name)) for entry in report.history] if report else []
    points = [point for point in points if point[1] is not None]
    if len(points) < 2:
        return None
    from metatransfer.drawing import episodes as drawing  # matplotlib takes time to import

    # a missing value leaves a gap
    values = [math.nan if number["value"] is None else number["value"] for _, number in points]
    baselines = {label: one.get(name, {}).get("value") for label, one in report.measured.items()}
    return drawing.learning_curve_figure(
        [step for step, _ in points],
        values,
        [_ends(number) for _, number in points],
        {label: value for label, value in baselines.items() if value is not None},
        name.replace("_", " "),
    )


def _ends(number: Mapping[str, float | None]) -> tuple[float, float]:
    """The ends of an interval, NaN if they are not known."""
    value, half, low, high = (number.get(part) for part in ("value", "ci95", "low", "high"))
    if value is None or half is None:
        return math.nan, math.nan
    return value - half if low is None else low, value + half if high is None else high


def publish_figures(trainer: Trainer, figures: "Mapping[str, Figure]") -> None:
    """Saves figures in the run's folder and in TensorBoard."""
    from PIL import Image

    from metatransfer.drawing import episodes as drawing

    folder = run_folder(trainer) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        pixels = drawing.to_pixels(figure)
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
