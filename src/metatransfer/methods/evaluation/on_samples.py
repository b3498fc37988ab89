"""Evaluation on labelled samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metatransfer.batches import LabelledBatch
from metatransfer.data_info import ServesDomains, ServesSamples
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.data_access import datamodule_of
from metatransfer.methods.evaluation.base import Baseline, Evaluation, Method
from metatransfer.methods.evaluation.sample_baselines import sample_baselines
from metatransfer.metrics import ClassifierMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    # ---- baselines

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """The most frequent class, and the class of the nearest training sample unless there is too much data."""
        data = datamodule_of(module)
        return sample_baselines(data.info(), data.train_samples) if isinstance(data, ServesSamples) else {}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: Any) -> Tensor:  # noqa: ANN401
        """1 for each correct prediction, 0 for each wrong one."""
        return episode_scores(baseline(batch).unsqueeze(1), batch.y.unsqueeze(1))

    # ---- what is told

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> dict[str, Figure]:
        """Confusion matrix, calibration, and the most confident wrong predictions."""
        metrics: Any = self.metrics[stage]
        if not metrics.collected.update_called:
            return {}
        answers, confusion = metrics.answers(), metrics.confusion()  # all processes take part
        error = metrics.compute().get("calibration_error")
        if not module.trainer.is_global_zero:
            return {}
        from metatransfer.methods.evaluation.sample_figures import sample_figures

        data = datamodule_of(module)
        show = data.show if isinstance(data, ServesSamples | ServesDomains) else None
        found = sample_figures(
            answers, confusion, error, module.class_names, lambda n: show and show(stage, n), mistakes
        )
        return {f"{stage}_{name}": figure for name, figure in found.items()}

    def tables(self, module: Method, stage: str) -> dict[str, str]:
        """``<stage>_classes.csv``: precision, recall, F1 and number of samples of each class."""
        metrics: Any = self.metrics[stage]
        if not metrics.collected.update_called:
            return {}
        from metatransfer.methods.evaluation.sample_figures import class_table

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
