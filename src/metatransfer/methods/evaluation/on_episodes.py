"""Evaluation on few-shot tasks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metatransfer.batches import Episode, MetaBatch, episodes_of
from metatransfer.checks import check_batch_kind
from metatransfer.data_info import DataInfo, info_of
from metatransfer.errors import UserError
from metatransfer.functional.losses import is_regression
from metatransfer.functional.meta.inputs import embed_tasks
from metatransfer.functional.meta.prototypes import class_count, class_prototypes, nearest_neighbor, prototype_scores
from metatransfer.methods.evaluation.base import Baseline, Evaluation, Method
from metatransfer.methods.outputs import Outputs, default_score, point_of, widened
from metatransfer.metrics import EpisodeMetrics
from metatransfer.nn import Backbone

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class AdaptsInSteps(Protocol):
    """A method that learns a task in steps."""

    def adaptation_curve(self, episode: Episode) -> Tensor:
        """The query score before adaptation and after each step ``(steps + 1, T)``."""

    def adaptation_outputs(self, episode: Episode) -> list[Any]:
        """The outputs before adaptation and after each step."""


class SupportScores(NamedTuple):
    """How much the queries of ``T`` tasks have to do with each support sample, or with each class.

    Attributes:
        values: ``(T, Q, S)`` or, if ``by_class``, ``(T, Q, W)``.
        name: what the values are, in a figure, e.g. ``"attention"``.
        by_class: whether the columns are the classes.
    """

    values: Tensor
    name: str
    by_class: bool = False


@runtime_checkable
class ScoresSupport(Protocol):
    """A method that compares queries with the support set."""

    def support_scores(self, episode: Episode) -> SupportScores:
        """The scores that its predictions are made of."""


class OnEpisodes(Evaluation):
    """Scores the queries of tasks; numbers are means over tasks with their 95% intervals.

    It scores the outputs of an :class:`~metatransfer.EpisodicModule` by the method's own ``score`` and ``task_losses``,
    and logs accuracy (or mean squared error), loss, calibration error, and the further scores of its ``evaluated``.
    """

    unit: ClassVar[str] = "episodes"
    percentages: ClassVar[frozenset[str]] = Evaluation.percentages | {"order_spread"}
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
            outputs, more = widened(module.evaluated(episode))
            scores, losses = module.score(outputs, targets), module.task_losses(outputs, targets)
            for metrics in self.collectors(stage, place):
                metrics.update(outputs, targets, scores, losses)
                if isinstance(metrics, EpisodeMetrics):
                    metrics.update_more(more)
        self._shown = self._shown or episodes[0]

    def baselines(self, module: Method) -> dict[str, Baseline]:
        """1-nearest-neighbour on the raw inputs (not for texts), class means, and the method with untrained weights.

        The class means are those of the features of the network as its file of weights has it, without any training.
        """
        info = info_of(module)
        shape = info.sample_shape if info is not None else getattr(getattr(module, "backbone", None), "in_shape", None)
        found: dict[str, Baseline] = {}
        if shape != ():
            found["pixel 1-NN" if shape is None or len(shape) == 3 else "1-NN"] = _nearest
        network = frozen_network(module)
        if network is not None and (info is None or info.num_targets is None):
            found["frozen features"] = ClassMeans(network)
        twin = module.untrained_twin()
        return found if twin is None else {**found, "untrained": twin}

    def baseline_scores(self, module: Method, baseline: Baseline, batch: MetaBatch) -> Tensor:
        """The score of each task; a baseline that is a method uses its own ``score``."""
        score = getattr(baseline, "score", default_score)
        return torch.cat([score(widened(baseline(episode)), episode.query_y) for episode in episodes_of(batch)])

    def answers(self, batch: MetaBatch) -> int:
        """The number of queries with class labels."""
        return sum(one.query_y.numel() for one in episodes_of(batch) if not is_regression(one.query_y))

    def monitored(self, info: DataInfo | None) -> tuple[str, str]:
        """The accuracy, or the squared error for regression."""
        return ("val/mse", "min") if info is not None and info.num_targets is not None else super().monitored(info)

    def figures(self, module: Method, stage: str, mistakes: int = 12) -> "dict[str, Figure]":
        """A task with its predictions, or true and learned curves; and the score after each inner step."""
        episode, self._shown = self._shown, None
        if episode is None or not module.trainer.is_global_zero:
            return {}
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


class ClassMeans:
    """Labels queries by the nearest class mean, in cosine, of the features of a network.

    Args:
        network: computes features ``(N, E)`` of samples.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, episode: Episode) -> Tensor:
        """Ten times the cosine of each query with each class mean, ``(T, Q, W)``."""
        support = embed_tasks(self.network, episode.support_x)
        means = class_prototypes(support, episode.support_y, class_count(episode.support_y))
        return prototype_scores(embed_tasks(self.network, episode.query_x), means, "cosine", 10.0)


@torch.inference_mode(False)
def frozen_network(module: nn.Module) -> Backbone | None:
    """The network of a method as its file of weights has it; ``None`` without a file, or if it is gone."""
    network = getattr(module, "backbone", None)
    if not isinstance(network, Backbone):
        return None
    with torch.random.fork_rng(devices=[]):
        try:
            again = type(network)(**network.__dict__["_init_arguments"])
        except (OSError, UserError):
            return None
    if again.weights_report is None:
        return None
    first = next(network.parameters())
    return again.to(first.device, first.dtype).eval()


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


@torch.no_grad()
def episode_figures(module: Any, episode: Episode, stage: str, score_name: str) -> "dict[str, Figure]":  # noqa: ANN401
    """Figures of the first task, or of the first regression tasks with one input and one target variable."""
    from metatransfer.drawing import episodes as drawing  # matplotlib takes time to import

    figures: dict[str, Figure] = {}
    x, regression = episode.support_x, is_regression(episode.query_y)
    if not isinstance(x, Tensor):
        return figures
    if x.dim() == 5 and not regression:
        first = episode.map(lambda tensor: tensor[:1])
        predicted = point_of(module(first))[0].argmax(-1).cpu()
        shown = first.map(lambda tensor: tensor[0].cpu())
        parts: tuple[Any, Any, Any, Any] = shown[:4]
        info = info_of(module)
        names = info.episode_classes.get(stage, ()) if info is not None else ()
        known = [names[one] for one in shown.classes.tolist()] if names and shown.classes is not None else []
        figures[f"{stage}_episode"] = drawing.episode_figure(*parts, predicted, known)
        if isinstance(module, ScoresSupport):
            figures[f"{stage}_support_scores"] = drawing.support_scores_figure(*_scored(module, first))
    elif regression and x.shape[2:] == episode.support_y.shape[2:] == (1,):
        figures[f"{stage}_episode"] = regression_figure(module, episode)
    if isinstance(module, AdaptsInSteps):
        figures["adaptation"] = drawing.adaptation_figure(module.adaptation_curve(episode).cpu(), score_name)
    return figures


def _scored(module: ScoresSupport, episode: Episode) -> tuple[Any, ...]:
    """The arguments of the figure of support scores: images and labels of columns and rows, values, their name."""
    found = module.support_scores(episode)
    shown = episode.map(lambda tensor: tensor[0].cpu())
    columns = torch.arange(len(shown.support_y))
    if found.by_class:  # the first sample stands for its class
        ways = torch.arange(found.values.shape[-1])
        columns = (shown.support_y == ways.unsqueeze(1)).int().argmax(1)
    assert isinstance(shown.support_x, Tensor)
    samples = shown.support_x[columns], shown.support_y[columns]
    return *samples, shown.query_x, shown.query_y, found.values[0].float().cpu(), found.name


def regression_figure(module: Any, episode: Episode, tasks: int = 3, points: int = 200) -> "Figure":  # noqa: ANN401
    """Regression tasks with one variable: true curve, support points, and the predictions on a grid.

    If outputs are distributions, the figure has a band of two standard deviations, also outside of the data.
    """
    from metatransfer.drawing import episodes as drawing  # matplotlib takes time to import

    few = episode.map(lambda tensor: tensor[:tasks])
    assert isinstance(few.query_x, Tensor)
    low, high = few.query_x.amin(1, keepdim=True), few.query_x.amax(1, keepdim=True)
    adapts = isinstance(module, AdaptsInSteps)
    places = torch.linspace(0, 1, points, device=low.device).view(1, -1, 1)
    outputs = module.adaptation_outputs(few) if adapts else [module(few)]
    if _deviation(outputs[-1]) is not None:
        places = 1.5 * places - 0.25
    grid = low + (high - low) * places
    asked = few._replace(query_x=grid)
    outputs = module.adaptation_outputs(asked) if adapts else [module(asked)]
    last = len(outputs) - 1
    curves = {"before adaptation" if last else "method": outputs[0]}
    curves |= {f"after {step} step{'s' * (step > 1)}": outputs[step] for step in sorted({1, last} - {0}) if last}
    predicted = {name: _plain(point_of(values)) for name, values in curves.items()}
    shown: tuple[Any, Any, Any, Any] = few.map(_plain)[:4]
    deviation = _deviation(outputs[-1])
    return drawing.regression_figure(*shown, _plain(grid), predicted, None if deviation is None else _plain(deviation))


def _deviation(outputs: Outputs) -> Tensor | None:
    """The standard deviations of a distribution, ``None`` for other outputs."""
    return None if isinstance(outputs, Tensor) else getattr(outputs, "stddev", None)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1).float().cpu()
