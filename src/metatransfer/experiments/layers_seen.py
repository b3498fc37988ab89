"""What the layers of a method see before and after its training, and what a probe reads from it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import Episode, Inputs, episodes_of, map_inputs
from metatransfer.checks import check_batch_kind
from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.functional import relative_change
from metatransfer.functional.meta import class_prototypes, squared_euclidean_scores
from metatransfer.methods.base import MethodModule
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.layer_features import layer_features, method_layers

SPLITS = {"val": "validation", "test": "test"}
_FOLDS = 5
_WITHIN = f"{_FOLDS}-fold cross-validated"


class Seen:
    """What one state of a network computed, by layer.

    Attributes:
        scores: of the probe, ``(U,)`` for each sample or task; empty without a probe.
    """

    def __init__(self) -> None:
        self._features: dict[str, list[Tensor]] = defaultdict(list)
        self.scores: dict[str, Tensor] = {}

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Adds the features of some samples."""
        for name, rows in found.items():
            self._features[name].append(rows)

    def rows(self, name: str) -> Tensor:
        """The features ``(N, D)`` of a layer, in float64."""
        return torch.cat(self._features[name]).double()

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that were used."""
        return tuple(self._features)


class Observed(NamedTuple):
    """What was seen of a method before and after its training.

    Attributes:
        start: the network at the start.
        end: at the end.
        adapted: at the end, adapted to each task; ``None`` if the method does not adapt its weights.
        moved: how far the weights of each layer moved in each task.
        samples: what the features were computed for.
        probe: what the probe is; empty if there is none.
    """

    start: Seen
    end: Seen
    adapted: Seen | None
    moved: Mapping[str, list[float]]
    samples: str
    probe: str


# ---- few-shot tasks


def on_tasks(before: EpisodicModule[Any], after: EpisodicModule[Any], data: Any, split: str, samples: int) -> Observed:  # noqa: ANN401
    """Both networks before they adapt, and the trained one after it."""
    start, end, adapted = _SeenTasks(before), _SeenTasks(after), _SeenTasks(after)
    moved: dict[str, list[float]] = defaultdict(list)
    count, number = 0, 0
    for task in _tasks(after, data, split):
        initial = _unlearned(after, task)
        start.look(task, _unlearned(before, task) if initial is not None else _learned(before, task))
        end.look(task, initial if initial is not None else _learned(after, task))
        if initial is not None:
            state = _learned(after, task)
            adapted.look(task, state)
            _add_moves(moved, after, initial, state)
        number, count = number + 1, count + task.support_y.shape[1] + task.query_y.shape[1]
        if count >= samples:
            break
    for one in (start, end, adapted):
        one.finish()
    probe = "nearest class mean of the support set, scored on the queries" if start.scores else ""
    words = f"{count} samples of {number} {SPLITS[split]} tasks"
    return Observed(start, end, adapted if moved else None, moved, words, probe)


class _SeenTasks(Seen):
    def __init__(self, module: EpisodicModule[Any]) -> None:
        super().__init__()
        self._module, self._right = module, defaultdict[str, list[float]](list)

    def look(self, task: Episode, state: Any) -> None:  # noqa: ANN401
        """Adds the features of a task, and the accuracy of the probe on its queries."""
        support, query = (_task_features(self._module, state, x) for x in (task.support_x, task.query_x))
        self.add({name: torch.cat([support[name], query[name]]) for name in query})
        for name in () if task.support_y.is_floating_point() else query:
            self._right[name].append(_nearest_mean(support[name], query[name], task))

    def finish(self) -> None:
        self.scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in self._right.items()}


def _tasks(module: EpisodicModule[Any], data: Any, split: str) -> Iterator[Episode]:  # noqa: ANN401
    for batch in getattr(data, f"{split}_dataloader")():
        check_batch_kind(batch, Episode, f"{type(module).__name__} is explained on")
        episodes = episodes_of(batch)
        module.check_episodes(episodes, f"the {split} episode")
        for episode in episodes:
            for place in range(len(episode.query_y)):
                yield episode.map(lambda part, place=place: part[place : place + 1])  # type: ignore[misc]


@torch.no_grad()
def _unlearned(module: EpisodicModule[Any], task: Episode) -> Any:  # noqa: ANN401
    return module.before_learning(task.support_x)


def _learned(module: EpisodicModule[Any], task: Episode) -> Any:  # noqa: ANN401
    return module.learned(map_inputs(lambda part: part[0], task.support_x), task.support_y[0])


def _task_features(module: MethodModule, state: Any, x: Inputs) -> dict[str, Tensor]:  # noqa: ANN401
    return layer_features(module, map_inputs(lambda part: part[0], x), lambda copied: copied.predict_tasks(state, x))


def _nearest_mean(support: Tensor, query: Tensor, task: Episode) -> float:
    means = class_prototypes(support.unsqueeze(0), task.support_y, int(task.support_y.max()) + 1)
    chosen = squared_euclidean_scores(query.unsqueeze(0), means).argmax(-1)
    return float((chosen == task.query_y).double().mean())


def _add_moves(moved: dict[str, list[float]], module: MethodModule, start: Any, end: Any) -> None:  # noqa: ANN401
    """Adds how far the weights of each layer moved in a task; layers that do not adapt stay."""
    for layer in method_layers(module):
        names = {name: name if name.startswith("head.") else f"backbone.{name}" for name in layer.parameters}
        own = {name: value.unsqueeze(0) for name, value in layer.parameters.items()}
        before, after = (
            {name: state.params.get(key, own[name]) for name, key in names.items()} for state in (start, end)
        )
        moved[layer.name].append(relative_change(before, after))


# ---- samples


def on_samples(before: MethodModule, after: MethodModule, data: ServesSamples, split: str, samples: int) -> Observed:
    """Both networks on samples of fixed classes."""
    seen = Seen(), Seen()
    more = ["use --split test"] if split == "val" else []
    numbers = _fill(seen, (before, after), data.samples(split), samples, lambda module, x: module(x), *more)
    labels = data.labels(split)[numbers]
    for one in seen:
        one.scores = {name: _cross_validated(one.rows(name), labels) for name in one.names}
    return Observed(*seen, None, {}, f"{len(labels)} {SPLITS[split]} samples", f"ridge classifier, {_WITHIN}")


def on_domains(before: MethodModule, after: MethodModule, data: Any, split: str, samples: int) -> Observed:  # noqa: ANN401
    """Both networks on samples of the target, and a probe of the source."""
    if split != "val":
        raise UserError("explain compares domains on their validation samples: leave out --split test.")
    source, target = data.val_dataloader()
    sources, seen = (Seen(), Seen()), (Seen(), Seen())
    numbers = _fill(sources, (before, after), source, samples, lambda one, x: one.head(one.encode(x, "source")))
    labels = torch.cat([batch.y.cpu() for batch in source])[numbers]
    numbers = _fill(seen, (before, after), target, samples, lambda module, x: module(x))
    oracle = data.oracle_labels("val")
    known = oracle[numbers] if oracle is not None and bool((oracle[numbers] >= 0).all()) else None
    for one, own in zip(seen, sources, strict=True):
        for name in one.names:
            x = own.rows(name)
            one.scores[name] = (
                _cross_validated(x, labels) if known is None else _right(_fitted(x, labels), one.rows(name), known)
            )
    where = _WITHIN if known is None else "scored on the target"
    samples_seen = f"{len(numbers)} validation samples of the target"
    return Observed(*seen, None, {}, samples_seen, f"ridge classifier of the source, {where}")


def _fill(
    seen: Sequence[Seen],
    modules: Sequence[Any],
    loader: Any,  # noqa: ANN401
    samples: int,
    run: Callable[[Any, Inputs], object],
    remedy: str = "use data with more samples",
) -> Tensor:
    """Adds the features of some samples of a loader, always the same, and returns their numbers."""
    chosen = torch.zeros(loader.count, dtype=torch.bool)
    chosen[torch.randperm(loader.count, generator=torch.Generator().manual_seed(0))[:samples]] = True
    numbers: list[Tensor] = []
    for batch in loader:
        kept = chosen[batch.number]
        if not kept.any():
            continue
        x = map_inputs(lambda part, kept=kept: part[kept], batch.x)  # type: ignore[misc]
        modules[1].check_samples(x)
        for one, module in zip(seen, modules, strict=True):
            one.add(layer_features(module, x, lambda copied, x=x: run(copied, x)))  # type: ignore[misc]
        numbers.append(batch.number[kept])
    found = torch.cat(numbers)
    if len(found) < 2 * _FOLDS:
        raise UserError(
            f"explain needs {2 * _FOLDS} or more samples, but has {len(found)}: raise --samples, or {remedy}."
        )
    return found


def _fitted(x: Tensor, labels: Tensor) -> Any:  # noqa: ANN401
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-2, 4, 7))).fit(x.numpy(), labels.numpy())


def _right(probe: Any, x: Tensor, labels: Tensor) -> Tensor:  # noqa: ANN401
    return torch.as_tensor(probe.predict(x.numpy()) == labels.numpy()).double()


def _cross_validated(x: Tensor, labels: Tensor) -> Tensor:
    """Whether each sample ``(N,)`` was labelled right by a probe of the other folds."""
    from sklearn.model_selection import KFold

    right = torch.zeros(len(x), dtype=torch.float64)
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(x.numpy()):
        right[test] = _right(_fitted(x[train], labels[train]), x[test], labels[test])
    return right
