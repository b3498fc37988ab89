"""Evaluation on few-shot tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metatransfer.batches import Episode, MetaBatch, episodes_of
from metatransfer.checks import check_batch_kind
from metatransfer.data_info import DataInfo
from metatransfer.functional.losses import is_regression
from metatransfer.functional.meta.prototypes import nearest_neighbor
from metatransfer.methods.data_access import info_of
from metatransfer.methods.evaluation.base import Baseline, Evaluation, Method
from metatransfer.methods.outputs import default_score, widened
from metatransfer.metrics import EpisodeMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class OnEpisodes(Evaluation):
    """Scores the queries of tasks; numbers are means over tasks with their 95% intervals.

    It scores the outputs of an :class:`~metatransfer.EpisodicModule` by the method's own ``score`` and ``task_losses``,
    and logs accuracy (or mean squared error), loss and calibration error.
    """

    unit: ClassVar[str] = "episodes"
    draws_every_validation: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._checked: set[tuple[str, int]] = set()
        self._shown: Episode | None = None

    def make_metrics(self) -> EpisodeMetrics:
        """Means over tasks."""
        return EpisodeMetrics()

    def setup(self, module: Method, info: DataInfo | None, stage: str) -> None:
        """Has the episodes checked again, since the data may have changed."""
        super().setup(module, info, stage)
        self._checked.clear()

    def start(self, stage: str) -> None:
        """Resets the metrics and discards the task to draw."""
        super().start(stage)
        self._shown = None

    def step(self, module: Method, batch: MetaBatch, stage: str, place: int = 0) -> None:
        """Scores a meta-batch."""
        check_batch_kind(batch, Episode, f"{type(module).__name__} is tested on")
        episodes = episodes_of(batch)
        if (stage, place) not in self._checked:  # looking at labels waits for the device
            module.check_episodes(episodes, f"the {stage} episode")
            self._checked.add((stage, place))
        for episode in episodes:
            targets = episode.query_y
            self.score_name = "mse" if is_regression(targets) else "accuracy"
            outputs = widened(module(episode))
            scores, losses = module.score(outputs, targets), module.task_losses(outputs, targets)
            for metrics in self.collectors(stage, place):
                metrics.update(outputs, targets, scores, losses)
        self._shown = self._shown or episodes[0]

    # ---- baselines

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """1-nearest-neighbour on the raw inputs (not for texts), and the method with untrained weights."""
        info = info_of(module)
        shape = info.sample_shape if info is not None else getattr(getattr(module, "backbone", None), "in_shape", None)
        found: dict[str, Baseline] = {}
        if shape != ():
            found["pixel 1-NN" if shape is None or len(shape) == 3 else "1-NN"] = _nearest
        twin = module.untrained_twin()
        return found if twin is None else {**found, "untrained": twin}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: MetaBatch) -> Tensor:
        """The score of each task; a baseline that is a method uses its own ``score``."""
        score = getattr(baseline, "score", default_score)
        parts = [score(widened(baseline(episode)), episode.query_y) for episode in episodes_of(batch)]
        return torch.cat(parts)

    # ---- selection

    def monitored(self, info: DataInfo | None) -> tuple[str, str]:
        """The accuracy, or the squared error for regression."""
        if info is not None and info.num_targets is not None:
            return "val/mse", "min"
        return super().monitored(info)

    # ---- what is told

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> dict[str, Figure]:
        """A task with its predictions, or true and learned curves; and the score after each inner step."""
        episode, self._shown = self._shown, None
        if episode is None or not module.trainer.is_global_zero:
            return {}
        from metatransfer.methods.evaluation.episode_figures import episode_figures

        return episode_figures(module, episode, stage, self.score_name)

    def rows(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Number and shape of the tasks, for each test set if there are several."""
        data, testing = results["protocol"].get("data", {}), results["stage"] == "test"
        rows = []
        if "eval_episode" in data:
            counted = f"{results['episodes'] or 'no'} {'test' if testing else 'val'}"
            rows.append(("episodes", f"{counted}, {_shape_line(data['eval_episode'])}"))
        sets = data.get("test", {}).items() if testing else ()
        return rows + [(f"test on {name}", f"{one['data']}, {_shape_line(one['eval_episode'])}") for name, one in sets]


def _nearest(episode: Episode) -> Tensor:
    assert isinstance(episode.support_x, Tensor)
    assert isinstance(episode.query_x, Tensor)
    return nearest_neighbor(episode.support_x, episode.support_y, episode.query_x)


def _shape_line(shape: Mapping[str, Any]) -> str:
    if "shape" in shape:
        limits = ", ".join(f"{name}={value}" for name, value in shape.items() if name != "shape")
        return f"{shape['shape']} with {limits}"
    if "num_ways" not in shape:
        return f"{shape['num_shots']} shots, {shape['num_queries']} queries"
    return f"{shape['num_ways']}-way {shape['num_shots']}-shot, {shape['num_queries']} queries per class"
