"""Correct and wrong predictions of a classifier, as figures and as a table by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metatransfer.drawing import classifiers as drawing
from metatransfer.metrics import Answers, reliability
from metatransfer.storage import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sample_figures(
    answers: Answers,
    confusion: Tensor,
    error: float,
    names: Sequence[str],
    show: Callable[[int], Any],
    mistakes: int,
) -> dict[str, Figure]:
    """Figures of the evaluation of a classifier."""
    figures = {
        "confusion": drawing.confusion_figure(confusion, names),
        "calibration": drawing.calibration_figure(*reliability(answers), error),
    }
    wrong = most_confident_mistakes(answers, mistakes)
    samples = [show(number) for number, *_ in wrong]
    if samples and (isinstance(samples[0], str) or (isinstance(samples[0], Tensor) and samples[0].dim() == 3)):
        captions = [f"{names[target]}, taken for {names[taken]} ({sure:.0%})" for _, target, taken, sure in wrong]
        figures["mistakes"] = drawing.mistakes_figure(samples, captions)
    return figures


def most_confident_mistakes(answers: Answers, count: int) -> list[tuple[int, int, int, float]]:
    """Number, class, prediction and confidence of wrong predictions, the most confident first."""
    wrong = (answers.prediction != answers.target) & ~answers.confidence.isnan()
    order = answers.confidence[wrong].argsort(descending=True)[:count]
    chosen = [part[wrong][order].tolist() for part in answers]
    return list(zip(chosen[0], chosen[1], chosen[2], chosen[3], strict=True))


def class_table(confusion: list[list[int]], names: Sequence[str]) -> str:
    """Precision, recall and F1 of each class, as CSV."""
    rows: list[list[object]] = [["class", "samples", "precision", "recall", "f1", "most often taken for"]]
    for place, name in enumerate(names):
        row, right = confusion[place], confusion[place][place]
        samples, answered = sum(row), sum(line[place] for line in confusion)
        others = [(count, other) for other, count in enumerate(row) if other != place and count]
        numbers = [right / answered if answered else None, right / samples if samples else None]
        numbers.append(2 * right / (samples + answered) if samples + answered else None)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        rows.append([name, samples, *shown, names[max(others, key=lambda pair: pair[0])[1]] if others else ""])
    return csv_text(rows)
