"""Base class of all evaluations, and Lightning's hooks that call them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from metatransfer.data_info import DataInfo, info_of
from metatransfer.errors import UserError
from metatransfer.functional.intervals import SMALL, in_words
from metatransfer.metrics.episode_metrics import EpisodeMean, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method: TypeAlias = Any
"""The :class:`~metatransfer.MethodModule` that is evaluated; each evaluation says what else it asks of it."""
Baseline: TypeAlias = Callable[[Any], Any]
"""Outputs for a batch, as the method's, by something that was not trained."""
Numbers: TypeAlias = dict[str, dict[str, float | None]]
"""By metric: ``value``, and where there is an interval ``ci95`` (half its length), ``low`` and ``high`` (its ends)."""


class Evaluation(nn.Module, ABC):
    """How a method is scored, and how its results are logged, compared, plotted and reported.

    A method owns one evaluation and passes its validation and test batches to it. Checkpoints, reports, tables and
    figures use the evaluation, whatever the family of the method. A subclass defines how a batch is scored
    (:meth:`step`) and what collects the scores (:meth:`make_metrics`). An evaluation has no weights and adds nothing to
    the ``state_dict``.

    Attributes:
        monitor: metric that selects the best state of a run by default.
        monitor_mode: ``"max"`` or ``"min"``.
        unit: what is counted: ``"episodes"`` or ``"samples"``.
        percentages: metrics that are reported in percent, or what their names begin with.
        withheld: first part of the names of metrics that must not select a state; they are in no checkpoint.
        draws_every_validation: whether to draw figures after each validation of a fit instead of only at its end.
        score_name: metric of the learning curve and of the baselines.
        metrics: metrics of the stages ``"val"`` and ``"test"``.
        test_names: names of the test sets, if there are several.
        test_metrics: metrics of each of these test sets.
        recorders: more collectors of a test, which keep every score.
    """

    monitor: ClassVar[str] = "val/accuracy"
    monitor_mode: ClassVar[str] = "max"
    unit: ClassVar[str] = "samples"
    percentages: ClassVar[frozenset[str]] = frozenset({"accuracy", "calibration_error", "macro_f1"})
    withheld: ClassVar[str | None] = None
    draws_every_validation: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.score_name = "accuracy"
        self.metrics = nn.ModuleDict({stage: self.make_metrics() for stage in ("val", "test")})
        self.test_names: tuple[str, ...] = ()
        self.test_metrics = nn.ModuleList()
        self.recorders: list[Any] = []

    # ---- what a subclass says

    @abstractmethod
    def make_metrics(self) -> nn.Module:
        """Makes a collector of scores with ``update``, ``compute`` (numbers by name) and ``reset``."""

    @abstractmethod
    def step(self, module: Method, batch: Any, stage: str, place: int = 0) -> None:  # noqa: ANN401
        """Scores a batch of a stage, ``"val"`` or ``"test"``; ``place`` is the index of its loader."""

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """Reference methods, evaluated on the same batches."""
        return {}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: Any) -> Tensor:  # noqa: ANN401
        """The scores of one of the :meth:`baselines` for each episode or sample of a batch, ``(N,)``."""
        raise NotImplementedError

    def answers(self, batch: Any) -> int:  # noqa: ANN401
        """The number of answers that the :meth:`baseline_scores` of a batch are fractions of; 0 if they are not."""
        return 0

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> "dict[str, Figure]":
        """Figures of the last evaluation, by file name without extension, with some wrong predictions.

        All processes must call it; only the result of the first one is used.
        """
        return {}

    def tables(self, module: Method, stage: str) -> dict[str, str]:
        """Contents of further files by name; called after :meth:`figures`, in the first process only."""
        return {}

    def rows(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Names and contents of the table rows before the numbers: what was counted, from ``results.json``."""
        return []

    def remarks(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Names and contents of the table rows after the numbers: whether the method has diverged."""
        number = results["metrics"].get(self.score_name)
        if not number or number["value"] is not None or not results.get(self.unit):
            return []
        remedy = "train with a lower learning rate, or clip gradients"
        return [("diverged", f"some outputs are NaN or infinite, so that nothing can be scored: {remedy}")]

    def setup(self, module: Method, info: DataInfo | None, stage: str) -> None:
        """Prepares for a stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; ``info`` may be unknown."""
        self.test_names = info.test_names if info is not None and stage == "test" else ()
        self.test_metrics = nn.ModuleList(self.make_metrics() for _ in self.test_names).to(module.device)

    def start(self, stage: str) -> None:
        """Resets the metrics of a stage."""
        for _, metrics in _metrics_of(self, stage):
            metrics.reset()

    def collectors(self, stage: str, place: int) -> list[Any]:
        """The metrics that a batch is added to: those of the stage and those of its test set."""
        more = [self.test_metrics[place]] if stage == "test" and place < len(self.test_metrics) else []
        return [self.metrics[stage], *more, *(self.recorders if stage == "test" else [])]

    def finish(self, module: Method, stage: str) -> None:
        """Logs ``<stage>/<metric>``, and ``test/<test set>/<metric>`` if there are several test sets."""
        for prefix, metrics in _metrics_of(self, stage):
            for name, value in metrics.compute().items():
                module.log(f"{prefix}/{name}", value, prog_bar=name == self.score_name, sync_dist=True)

    def monitored(self, info: DataInfo | None) -> tuple[str, str]:
        """The metric that selects the best state on the given data, and its mode."""
        return self.monitor, self.monitor_mode

    def mode_of(self, metric: str) -> str:
        """Whether higher (``"max"``) or lower (``"min"``) values of a metric are better."""
        higher = "accuracy" in metric or "likelihood" in metric
        return self.monitor_mode if metric == self.monitor else "max" if higher else "min"

    def selected_by(self, card: Mapping[str, Any]) -> str | None:
        """The criterion that selected the state of a run, in words, from its protocol card."""
        return card.get("selection")

    def obstacle(self, metric: str, info: DataInfo | None) -> str | None:
        """The reason why a metric must not be monitored, as the end of a sentence; ``None`` if it may be."""
        return None

    def counts(self, numbers: Numbers, stage: str) -> dict[str, int | None]:
        """Number of ``episodes`` and ``samples``, one of which is ``None``, and of anything else that was counted."""
        found = {name: numbers.get(name, {}).get("value") for name in ("episodes", "samples")}
        return {name: None if value is None else int(value) for name, value in found.items()}

    def told(self, name: str, number: Mapping[str, float | None]) -> str:
        """Formats a number for a report, with its 95% interval: ``"98.22 ± 0.20 %"``.

        Lopsided intervals are given by their ends, and accuracies of few samples also as a count:
        ``"91.7 % [64.6, 98.5] (11 of 12)"``.

        Args:
            name: of the metric, possibly after the name of a test set.
            number: see :data:`Numbers`; ``of`` is the number of samples.
        """
        value = number["value"]
        if value is None:
            return "not a number"
        interval = [number.get(part) for part in ("ci95", "low", "high")]
        if not name.rpartition("/")[2].startswith(tuple(self.percentages)):
            return in_words(value, *interval, scale=1.0, digits=4)
        samples = number.get("of")
        count = f" ({value * samples:.0f} of {samples:.0f})" if samples and samples < SMALL else ""
        return in_words(value, *interval, unit=" %") + count


def _metrics_of(evaluation: Evaluation, stage: str) -> list[tuple[str, Any]]:
    whole: list[tuple[str, Any]] = [(stage, evaluation.metrics[stage])] if stage in evaluation.metrics else []
    names = [f"test/{name}" for name in evaluation.test_names] if stage == "test" else []
    return whole + list(zip(names, evaluation.test_metrics, strict=False))


class BaselineScores:
    """Scores of a method's baselines over one evaluation, in total and for each of several test sets."""

    def __init__(self, module: Method, stage: str) -> None:
        self.evaluation, self.module, self.baselines = module.evaluation, module, module.baselines()
        keys = ["", *(f"{name}/" for name in (module.evaluation.test_names if stage == "test" else ()))]
        self._means = {name: {key: EpisodeMean().to(module.device) for key in keys} for name in self.baselines}

    def update(self, batch: Any, place: int = 0) -> None:  # noqa: ANN401
        """Scores a batch."""
        for name, baseline in self.baselines.items():
            scores = self.evaluation.baseline_scores(self.module, baseline, batch)
            for index, mean in enumerate(self._means[name].values()):
                if index in (0, place + 1):
                    mean.update(scores, self.evaluation.answers(batch))

    def compute(self) -> dict[str, dict[str, float]]:
        """By baseline, means and intervals as an evaluation logs them; all processes must call it."""
        found: dict[str, dict[str, float]] = {name: {} for name in self._means}
        for name, means in self._means.items():
            for key, mean in means.items():
                logged = named(key + self.evaluation.score_name, mean.compute())
                found[name] |= {metric: float(value) for metric, value in logged.items()}
        return found


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
        """Resets the metrics."""
        self.evaluation.start("test" if self.trainer.testing else "val")

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics."""
        self.evaluation.finish(self, "test" if self.trainer.testing else "val")

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end

    def on_fit_start(self) -> None:
        """Checks the monitored metrics."""
        info = info_of(self)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        watching: dict[Any, Any] = {
            one: one.monitor for one in callbacks if isinstance(one, ModelCheckpoint | EarlyStopping)
        }
        watching |= {one.scheduler: one.monitor for one in self.trainer.lr_scheduler_configs if one.reduce_on_plateau}
        for one, metric in watching.items():
            obstacle = self.evaluation.obstacle(str(metric), info)
            if obstacle is not None:
                raise UserError(f"{type(one).__name__} monitors {metric}, {obstacle}")

    def on_train_start(self) -> None:
        """Discards the numbers of the sanity check."""
        self.evaluation.start("val")
