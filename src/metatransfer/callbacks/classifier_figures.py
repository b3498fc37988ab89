"""What a classifier gets right and wrong, as pictures and as a table by class."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from metatransfer.callbacks.figures import publish_figures
from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.run_folder import agree_on_run_folder, run_folder
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.domain import DomainAdaptationModule
from metatransfer.metrics import Answers, ClassifierMetrics, reliability
from metatransfer.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ClassifierFigures(Callback):
    """Draws what the last evaluation of a classifier answered, to TensorBoard and as PNG files.

    ``figures/<stage>_confusion.png``, ``<stage>_calibration.png`` (Guo et al. 2017, 1706.04599),
    ``<stage>_mistakes.png``: the most confident wrong answers, as pictures or sentences; ``learning_curve.png`` after a
    fit; and ``<stage>_classes.csv`` with precision, recall, F1 and samples of each class.

    Args:
        mistakes: how many wrong answers to show.
    """

    def __init__(self, mistakes: int = 12) -> None:
        self.mistakes = mistakes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees with the other processes on the folder."""
        agree_on_run_folder(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws ``lightning validate``."""
        if trainer.validating:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws ``lightning test``."""
        self._draw(trainer, pl_module, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation of a fit."""
        self._draw(trainer, pl_module, "val")

    def _draw(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(module, ClassifierModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(module, DomainAdaptationModule) and stage == "val":
            self._draw_source(trainer)  # there is no answer that could be called right or wrong
            return
        metrics: ClassifierMetrics = module.metrics[stage]  # type: ignore[assignment]
        if not metrics.collected.update_called:
            return
        answers, confusion = metrics.answers(), metrics.confusion()  # all processes take part
        if not trainer.is_global_zero:
            return
        # matplotlib costs start-up time that --help need not pay
        from metatransfer.drawing import classifiers as drawing

        names = module.class_names
        error = float(metrics.compute()["calibration_error"])
        figures: dict[str, Figure] = {
            f"{stage}_confusion": drawing.confusion_figure(confusion, names),
            f"{stage}_calibration": drawing.calibration_figure(*reliability(answers), error),
        }
        wrong = self._mistakes(answers)
        data: Any = getattr(trainer, "datamodule", None)
        samples = [data.show(stage, number) for number, *_ in wrong] if hasattr(data, "show") else []
        if samples and (isinstance(samples[0], str) or samples[0].dim() == 3):  # a row of a table shows nothing
            captions = [f"{names[target]}, taken for {names[taken]} ({sure:.0%})" for _, target, taken, sure in wrong]
            figures[f"{stage}_mistakes"] = drawing.mistakes_figure(samples, captions)
        curve = _learning_curve(trainer) if trainer.training or trainer.state.fn == "fit" else None
        if curve is not None:
            figures["learning_curve"] = curve
        publish_figures(trainer, figures)
        write_atomically(run_folder(trainer) / f"{stage}_classes.csv", class_table(confusion.cpu().tolist(), names))

    def _draw_source(self, trainer: Trainer) -> None:
        curve = _learning_curve(trainer, "source_accuracy") if trainer.state.fn == "fit" else None
        if curve is not None and trainer.is_global_zero:
            publish_figures(trainer, {"learning_curve": curve})

    def _mistakes(self, answers: Answers) -> list[tuple[int, int, int, float]]:
        wrong = (answers.prediction != answers.target) & ~answers.confidence.isnan()
        order = answers.confidence[wrong].argsort(descending=True)[: self.mistakes]
        chosen = [part[wrong][order].tolist() for part in answers]
        return list(zip(chosen[0], chosen[1], chosen[2], chosen[3], strict=True))


def class_table(confusion: list[list[int]], names: tuple[str, ...]) -> str:
    """Precision, recall and F1 of each class, as CSV.

    Args:
        confusion: counts, by class and answer.
        names: of the classes.

    Returns:
        Lines ``class,samples,precision,recall,f1,most often taken for``; an empty cell where a number has no meaning.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "samples", "precision", "recall", "f1", "most often taken for"])
    for place, name in enumerate(names):
        row, right = confusion[place], confusion[place][place]
        samples, answered = sum(row), sum(line[place] for line in confusion)
        others = [(count, other) for other, count in enumerate(row) if other != place and count]
        numbers = [right / answered if answered else None, right / samples if samples else None]
        numbers.append(2 * right / (samples + answered) if samples + answered else None)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        writer.writerow([name, samples, *shown, names[max(others, key=lambda pair: pair[0])[1]] if others else ""])
    return text.getvalue()


def _learning_curve(trainer: Trainer, name: str = "accuracy") -> Figure | None:
    from metatransfer.drawing import episodes as drawing

    report: Any = next((callback for callback in trainer.callbacks if isinstance(callback, Report)), None)  # type: ignore[attr-defined]
    points = [(entry["step"], entry["metrics"].get(name)) for entry in report.history] if report else []
    points = [point for point in points if point[1] is not None]
    if len(points) < 2:
        return None
    return drawing.learning_curve_figure(
        [step for step, _ in points],
        [math.nan if number["value"] is None else number["value"] for _, number in points],
        [number.get("ci95") or 0.0 for _, number in points],
        {label: float(numbers[name]["value"] or 0.0) for label, numbers in report.measured.items()},
        name.replace("_", " "),
    )
