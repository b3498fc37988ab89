"""The base of all evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from torch import Tensor, nn

from metatransfer.data_info import DataInfo
from metatransfer.metrics import EpisodeMean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method: TypeAlias = Any
"""The :class:`~metatransfer.MethodModule` that is evaluated; each evaluation says what else it asks of it."""
Baseline: TypeAlias = Callable[[Any], Any]
"""Outputs for a batch, as the method's, by something that was not trained."""
Numbers: TypeAlias = dict[str, dict[str, float | None]]
"""``value``, and ``ci95`` where there is an interval, by metric."""


class Evaluation(nn.Module, ABC):
    """What a method is scored by, and how that is logged, compared, drawn and told.

    A method owns one evaluation and passes its validation and test batches to it. Checkpoints, report, table and
    figures ask the evaluation and know no family of methods. A subclass says what a batch is scored by (:meth:`step`),
    what collects the scores (:meth:`make_metrics`), and, if the defaults do not fit, everything else. It has no weights
    and nothing in the ``state_dict``.

    Attributes:
        monitor: metric that selects the best state of a run, unless the user names another.
        monitor_mode: ``"max"`` or ``"min"`` of it.
        unit: what is counted: ``"episodes"`` or ``"samples"``.
        percentages: metrics that are told in percent.
        withheld: first part of the names of metrics that no run may be selected by; they are in no checkpoint.
        draws_every_validation: whether pictures are drawn after each validation of a fit, or at its end alone.
        score_name: metric of the learning curve and of the baselines.
        metrics: of the stages ``"val"`` and ``"test"``.
        test_names: names of the test sets, if there are several.
        test_metrics: of each of these sets.
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

    # ---- what a subclass says

    @abstractmethod
    def make_metrics(self) -> nn.Module:
        """A collector of scores with ``update``, ``compute`` (numbers by name) and ``reset``."""

    @abstractmethod
    def step(self, module: Method, batch: Any, stage: str, place: int = 0) -> None:  # noqa: ANN401
        """Scores a batch.

        Args:
            module: the method.
            batch: what the data module serves.
            stage: ``"val"`` or ``"test"``.
            place: which of several loaders it comes from.
        """

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """What the method's numbers are compared with, on the same batches."""
        return {}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: Any) -> Tensor:  # noqa: ANN401
        """The scores of a baseline on a batch.

        Args:
            module: the method.
            baseline: one of :meth:`baselines`.
            batch: of the evaluation.

        Returns:
            One for each episode or sample, ``(N,)``.
        """
        raise NotImplementedError

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> dict[str, Figure]:
        """Pictures of the last evaluation; called in all processes, needed in the first.

        Args:
            module: the method.
            stage: ``"val"`` or ``"test"``.
            mistakes: how many wrong answers to show.

        Returns:
            By file name without its ending.
        """
        return {}

    def tables(self, module: Method, stage: str) -> dict[str, str]:
        """Content of further files by name, after :meth:`figures` and in the first process only."""
        return {}

    def rows(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Names and contents of the table's rows before the numbers: what was counted.

        Args:
            results: the content of ``results.json``.
        """
        return []

    def remarks(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The table's rows after the numbers, as in :meth:`rows`."""
        return []

    # ---- an evaluation

    def setup(self, module: Method, info: DataInfo | None, stage: str) -> None:
        """Prepares for data that may be another module's than before.

        Args:
            module: the method.
            info: of the data, if it is known.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        self.test_names = info.test_names if info is not None and stage == "test" else ()
        self.test_metrics = nn.ModuleList(self.make_metrics() for _ in self.test_names).to(module.device)

    def start(self, stage: str) -> None:
        """Forgets the last evaluation of a stage."""
        for _, metrics in self._metrics_of(stage):
            metrics.reset()

    def collectors(self, stage: str, place: int) -> list[Any]:
        """The metrics that a batch counts for: those of the stage, and those of its test set.

        Args:
            stage: ``"val"`` or ``"test"``.
            place: which of several loaders the batch comes from.

        Returns:
            One or two.
        """
        more = [self.test_metrics[place]] if stage == "test" and place < len(self.test_metrics) else []
        return [self.metrics[stage], *more]

    def finish(self, module: Method, stage: str) -> None:
        """Logs ``<stage>/<metric>``, and ``test/<test set>/<metric>`` if there are several."""
        for prefix, metrics in self._metrics_of(stage):
            for name, value in metrics.compute().items():
                module.log(f"{prefix}/{name}", value, prog_bar=name == self.score_name, sync_dist=True)

    def _metrics_of(self, stage: str) -> list[tuple[str, Any]]:
        whole: list[tuple[str, Any]] = [(stage, self.metrics[stage])] if stage in self.metrics else []
        names = [f"test/{name}" for name in self.test_names] if stage == "test" else []
        return whole + list(zip(names, self.test_metrics, strict=False))

    # ---- selection

    def monitored(self, info: DataInfo | None) -> tuple[str, str]:
        """The metric that selects the best state on some data, and its mode."""
        return self.monitor, self.monitor_mode

    def mode_of(self, metric: str) -> str:
        """Whether a higher (``"max"``) or a lower (``"min"``) value of a metric is better."""
        return self.monitor_mode if metric == self.monitor else "max" if "accuracy" in metric else "min"

    def selected_by(self, card: Mapping[str, Any]) -> str | None:
        """What selected the state of a run, in words, from its protocol card."""
        return card.get("selection")

    def obstacle(self, metric: str, info: DataInfo | None) -> str | None:
        """Why a metric must not be monitored, as the rest of a sentence; ``None`` if it may."""
        return None

    # ---- what is told

    def counts(self, numbers: Numbers, stage: str) -> dict[str, int | None]:
        """How much was evaluated.

        Args:
            numbers: what was logged.
            stage: ``"fit"``, ``"validate"`` or ``"test"``.

        Returns:
            ``episodes`` and ``samples``, of which one is ``None``, and what else was counted.
        """
        found = {name: numbers.get(name, {}).get("value") for name in ("episodes", "samples")}
        return {name: None if value is None else int(value) for name, value in found.items()}

    def told(self, name: str, number: Mapping[str, float | None]) -> str:
        """A number for people: in percent where that is usual, with the half-width of its 95% interval.

        Args:
            name: of the metric, also after the name of a test set.
            number: ``value``, and ``ci95`` if it has one.

        Returns:
            For example ``"98.22 ± 0.20 %"``.
        """
        value, half_width = number["value"], number.get("ci95")
        if value is None:
            return "not a number"
        percent = name.rpartition("/")[2] in self.percentages
        scale, unit, digits = (100.0, " %", 2) if percent else (1.0, "", 4)
        interval = f" ± {scale * half_width:.{digits}f}" if half_width is not None else ""
        return f"{scale * value:.{digits}f}{interval}{unit}"


class BaselineScores:
    """Scores of baselines over one evaluation, as a whole and for each of several test sets.

    Args:
        evaluation: what scores them.
        module: the method.
        baselines: what is scored.
        test_names: names of the test sets, if there are several.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        module: Method,
        baselines: Mapping[str, Baseline],
        test_names: tuple[str, ...] = (),
    ) -> None:
        self.evaluation, self.module, self.baselines = evaluation, module, dict(baselines)
        keys = ["", *(f"{name}/" for name in test_names)]
        self._means = {name: {key: EpisodeMean().to(module.device) for key in keys} for name in self.baselines}

    @classmethod
    def of(cls, module: Method, stage: str) -> Self:
        """Prepares to score a method's baselines on the batches of its evaluation."""
        evaluation: Evaluation = module.evaluation
        return cls(evaluation, module, module.baselines(), evaluation.test_names if stage == "test" else ())

    def update(self, batch: Any, place: int = 0) -> None:  # noqa: ANN401
        """Scores a batch."""
        for name, baseline in self.baselines.items():
            scores = self.evaluation.baseline_scores(self.module, baseline, batch)
            for index, mean in enumerate(self._means[name].values()):
                if index in (0, place + 1):
                    mean.update(scores)

    def compute(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Mean and half-width of the 95% interval by baseline and metric; all processes take part."""
        return {
            name: {
                key + self.evaluation.score_name: (float(value), float(half_width))
                for key, (value, half_width) in ((key, mean.compute()) for key, mean in means.items())
            }
            for name, means in self._means.items()
        }
