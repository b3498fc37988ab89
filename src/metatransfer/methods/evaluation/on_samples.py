"""Evaluation on labelled samples."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.batches import LabelledBatch
from metatransfer.data_info import DataInfo, ServesDomains, ServesSamples, datamodule_of
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.evaluation.base import Baseline, Evaluation, Method
from metatransfer.metrics import Answers, ClassifierMetrics, reliability
from metatransfer.storage import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FREQUENT = "most frequent class"
_NEIGHBOUR_LIMIT = 2**26  # numbers in all training samples: beyond, searching neighbours costs more than it tells


class OnSamples(Evaluation):
    """Scores predictions for single samples; numbers are means over samples with their 95% intervals.

    It scores the ``outputs`` of a :class:`~metatransfer.ClassifierModule`, logs accuracy, loss, macro-F1 and
    calibration error, and keeps the predictions of the last evaluation for figures.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes  # first, since the base's constructor makes the metrics
        super().__init__()
        self._checked: set[str] = set()

    def make_metrics(self) -> ClassifierMetrics:
        """Metrics of a classifier."""
        return ClassifierMetrics(self.num_classes)

    def setup(self, module: Method, info: Any, stage: str) -> None:  # noqa: ANN401
        """Has the samples checked again, since the data may have changed."""
        super().setup(module, info, stage)
        self._checked.clear()
        for metrics in (*self.metrics.values(), *self.test_metrics):
            metrics.calibrated = module.calibrated

    def step(self, module: Method, batch: Any, stage: str, place: int = 0) -> None:  # noqa: ANN401
        """Scores a labelled batch, or a pair ``(x, y)``."""
        if stage not in self._checked:  # looking at labels waits for the device
            module.check_batch(batch, stage)
            self._checked.add(stage)
        given = LabelledBatch(*batch)
        self.collect(module.outputs(given, stage), given, stage, place)

    def collect(self, outputs: Tensor, batch: Any, stage: str, place: int) -> None:  # noqa: ANN401
        """Adds the logits of a batch to the metrics."""
        for metrics in self.collectors(stage, place):
            metrics.update(outputs, batch.y, batch.number)

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """The most frequent class, and the class of the nearest training sample unless there is too much data."""
        data = datamodule_of(module)
        return sample_baselines(data.info(), data.train_samples) if isinstance(data, ServesSamples) else {}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: Any) -> Tensor:  # noqa: ANN401
        """1 for each correct prediction, 0 for each wrong one."""
        return episode_scores(baseline(batch).unsqueeze(1), batch.y.unsqueeze(1))

    def answers(self, batch: Any) -> int:  # noqa: ANN401
        """The number of samples."""
        return len(batch.y)

    def _collected(self, stage: str) -> Any:  # noqa: ANN401
        """The metrics of the last evaluation; ``None`` if nothing was collected."""
        metrics: Any = dict(self.metrics.items()).get(stage)
        return metrics if metrics is not None and metrics.collected.update_called else None

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> "dict[str, Figure]":
        """Confusion matrix, calibration, the most confident wrong predictions, and those of the method."""
        metrics = self._collected(stage)
        if metrics is None:
            return {}
        answers, confusion = metrics.answers(), metrics.confusion()  # all processes take part
        error = metrics.compute().get("calibration_error")
        if not module.trainer.is_global_zero:
            return {}
        from metatransfer.drawing import classifiers as drawing  # matplotlib takes time to import

        data, names = datamodule_of(module), module.class_names
        figures = {f"{stage}_confusion": drawing.confusion_figure(confusion, names)}
        if error is not None:
            figures[f"{stage}_calibration"] = drawing.calibration_figure(*reliability(answers), float(error))
        wrong = most_confident_mistakes(answers, mistakes) if isinstance(data, ServesSamples | ServesDomains) else []
        samples = [data.show(stage, number) for number, *_ in wrong]
        if samples and (isinstance(samples[0], str) or (isinstance(samples[0], Tensor) and samples[0].dim() == 3)):
            captions = [f"{names[target]}, taken for {names[taken]} ({sure:.0%})" for _, target, taken, sure in wrong]
            figures[f"{stage}_mistakes"] = drawing.mistakes_figure(samples, captions)
        figures.update(module.more_figures(stage))
        return figures

    def tables(self, module: Method, stage: str) -> dict[str, str]:
        """``<stage>_classes.csv``: precision, recall, F1 and number of samples of each class."""
        metrics = self._collected(stage)
        if metrics is None:
            return {}
        return {f"{stage}_classes.csv": class_table(metrics.confusion().cpu().tolist(), module.class_names)}

    def rows(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Number of samples and classes, and the training data."""
        if results.get("samples") is None:
            return []
        data = results["protocol"].get("data", {})
        seen, split = data.get("train_batches", {}), "test" if results["stage"] == "test" else "val"
        counted, learned = self.counted_line(results, split, seen)
        return [("samples", f"{counted}, {data.get('classes', 'its')} classes, trained on {learned}")]

    def counted_line(self, results: Mapping[str, Any], split: str, seen: Mapping[str, Any]) -> tuple[str, str]:
        """What was counted in a split and, from the card of the training batches, what was trained on, in words."""
        labels = seen.get("labels_per_class")
        learned = f"{labels} labels per class" if labels else f"{seen.get('samples', 'its')} samples"
        return f"{results['samples']} {split}", learned


def sample_baselines(info: DataInfo, samples: Callable[[], Iterable[Any]], prefix: str = "") -> dict[str, Baseline]:
    """The most frequent class, and the class of the nearest training sample unless there is too much data."""
    row = F.one_hot(torch.tensor(info.class_counts).argmax(), len(info.class_counts)).float()
    found: dict[str, Baseline] = {MOST_FREQUENT: lambda batch: row.to(batch.y.device).expand(len(batch.y), -1)}
    shape, count = info.sample_shape, sum(info.class_counts)
    # texts have no shape, and no distance
    if shape and count * torch.Size(shape).numel() <= _NEIGHBOUR_LIMIT:
        found[f"{prefix}{'pixel 1-NN' if len(shape) == 3 else '1-NN'}"] = _nearest(samples, len(info.class_counts))
    return found


def _nearest(samples: Callable[[], Iterable[Any]], num_classes: int) -> Baseline:
    """Predicts the class of the nearest training sample by Euclidean distance, one-hot."""

    @functools.cache
    def known() -> tuple[Tensor, Tensor]:
        parts = [(part.x.flatten(1), part.y) for part in samples()]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def predict(batch: Any) -> Tensor:  # noqa: ANN401
        x, y = (tensor.to(batch.y.device) for tensor in known())
        return F.one_hot(y[torch.cdist(batch.x.flatten(1).to(x.dtype), x).argmin(1)], num_classes).float()

    return predict


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
