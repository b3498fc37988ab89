"""Distances between tasks, in the features of one network and by the way it would have to change."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters import Labelled, LinearProbe
from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError
from metatransfer.functional import diagonal_fisher, leep, nce, stateless, task2vec, task2vec_distance
from metatransfer.functional.domain.discrepancy import mmd
from metatransfer.functional.domain.distance import proxy_a_distance
from metatransfer.functional.domain.transport import dataset_distance
from metatransfer.functional.meta.replicas import replica
from metatransfer.nn import Backbone, Conv4, RawFeatures

_BATCH = 256
_RATE = 0.1  # of the probe, on standardised features


class ProbedTask:
    """A task as a network sees it; everything is computed when it is first used.

    Args:
        samples: ``(N, *shape)`` and their labels ``(N,)``, from 0 without gaps.
        backbone: the network, in evaluation mode and not trained.
        draws: see :func:`~metatransfer.functional.diagonal_fisher`.
        seed: of the order of the probe's samples and of the draws.
    """

    def __init__(self, samples: Labelled, backbone: Backbone, draws: int | None = None, seed: int = 0) -> None:
        self.samples, self.backbone, self.draws, self.seed = samples, backbone, draws, seed

    @cached_property
    def features(self) -> Labelled:
        """Features ``(N, E)`` and labels."""
        with torch.no_grad():
            parts = [self.backbone(x) for x in torch.split(self.samples.x, _BATCH)]
        return Labelled(torch.cat(parts).float(), self.samples.y)

    @cached_property
    def probe(self) -> LinearProbe:
        """A logistic regression on the features."""
        probe = LinearProbe(learning_rates=1, lowest=_RATE, highest=_RATE, seed=self.seed)
        return probe.fit(self.features, int(self.samples.y.max()) + 1)

    @cached_property
    def embedding(self) -> Tensor:
        """The :func:`~metatransfer.functional.task2vec` of the network with the probe as its head."""
        forward = stateless(self.backbone, running=True)
        weights = _weights(self.backbone)
        if not weights:
            raise UserError(
                f"task2vec needs a network with weights, but {type(self.backbone).__name__} has none: give a "
                "backbone, or another measure."
            )

        def logits(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return self.probe.scores(forward(params, x))

        make = torch.Generator().manual_seed(self.seed)
        return task2vec(diagonal_fisher(logits, weights, self.samples.x, draws=self.draws, generator=make))


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    """What ``task2vec`` looks at: the parameters but for biases and those of a normalisation."""
    return {name: value.detach() for name, value in backbone.named_parameters() if value.dim() > 1}


class Measure(NamedTuple):
    """A distance of two tasks.

    Attributes:
        title: what it is, with its unit.
        between: the distance from one task to another; ``scale`` is the median squared distance of all features.
        symmetric: whether it is the same in both directions and 0 from a task to itself.
    """

    title: str
    between: Callable[[ProbedTask, ProbedTask, float], Tensor | float]
    symmetric: bool = True


def _leep(source: ProbedTask, target: ProbedTask, scale: float) -> Tensor:
    return -leep(source.probe(target.features.x).softmax(-1), target.samples.y)


def _nce(source: ProbedTask, target: ProbedTask, scale: float) -> Tensor:
    return -nce(source.probe.predict(target.features.x), target.samples.y)


MEASURES = {
    "task2vec": Measure("Task2Vec, 0 to 1", lambda a, b, _: task2vec_distance(a.embedding, b.embedding)),
    "mmd": Measure("squared MMD of the features", lambda a, b, scale: mmd(a.features.x, b.features.x, scale=scale)),
    "ot": Measure(
        "optimal transport with labels, in units of the features",
        lambda a, b, _: dataset_distance(*a.features, *b.features),
    ),
    "a_distance": Measure("proxy A-distance, 0 to 2", lambda a, b, _: proxy_a_distance(a.features.x, b.features.x)),
    "leep": Measure("minus LEEP from row to column, nats", _leep, symmetric=False),
    "nce": Measure("minus NCE from row to column, nats", _nce, symmetric=False),
}
"""The known distances by name."""


def distances(
    tasks: Mapping[str, Labelled],
    measures: Sequence[str] | None = None,
    backbone: Backbone | None = None,
    *,
    draws: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Distances between all pairs of tasks.

    All tasks are seen through the same network, which decides what counts as similar. Images of other sizes or channels
    are converted to those of the network.

    Args:
        tasks: at least two tasks by name: samples ``(N, *shape)``, and labels ``(N,)`` from 0 without gaps.
        measures: names in :data:`MEASURES`; by default ``task2vec`` if the network has weights, ``mmd`` and ``ot``.
        backbone: the network; by default :class:`~metatransfer.nn.Conv4` with the weights of the package for images,
            and the values themselves for anything else.
        draws: labels drawn for each sample for ``task2vec``, which is exact by default.
        seed: of the probe and of the draws.

    Returns:
        A float64 matrix ``(T, T)`` for each measure, in the order of the tasks; rows are where the transfer starts.

    Raises:
        UserError: an unknown measure, fewer than two tasks, or samples that do not fit each other or the network.
    """
    unknown = next((name for name in measures or () if name not in MEASURES), None)
    if unknown is not None or (measures is not None and not measures):
        meant = did_you_mean(unknown or "", list(MEASURES))
        raise UserError(f"'{unknown or ''}' is not a measure of similarity{meant} Known: {', '.join(MEASURES)}.")
    if len(tasks) < 2:
        raise UserError(f"similarity compares two or more data sets, but got {', '.join(tasks) or 'none'}.")
    given = backbone or default_backbone(next(iter(tasks.values())).x)
    network = replica(given).eval()  # a copy, since the user may go on training
    if measures is None:
        measures = ["task2vec", "mmd", "ot"] if _weights(network) else ["mmd", "ot"]
    probed = [
        ProbedTask(Labelled(converted(task.x, network, name), task.y), network, draws, seed)
        for name, task in tasks.items()
    ]
    scale = _median(torch.cat([task.features.x for task in probed]))
    return {name: _matrix(MEASURES[name], probed, scale) for name in measures}


def _matrix(measure: Measure, tasks: Sequence[ProbedTask], scale: float) -> Tensor:
    found = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for (row, one), (column, other) in itertools.product(enumerate(tasks), repeat=2):
        if not measure.symmetric or row < column:
            found[row, column] = float(measure.between(one, other, scale))
            if measure.symmetric:
                found[column, row] = found[row, column]
    return found


def _median(features: Tensor, limit: int = 1000) -> float:
    """The median squared distance of some samples of all tasks, so that all pairs of tasks have the same kernel."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:limit]
    return float(torch.pdist(features[order].double()).square().median()) or 1.0


def default_backbone(x: Tensor) -> Backbone:
    """The network for samples ``(N, *shape)`` if none is given."""
    return Conv4(weights="glyphs") if x.dim() == 4 else RawFeatures(in_shape=tuple(x.shape[1:]))


def converted(x: Tensor, backbone: Backbone, name: str) -> Tensor:
    """Samples ``(N, *shape)`` as the network takes them: images get its size and channels.

    Raises:
        UserError: the network takes other samples.
    """
    wanted = backbone.in_shape
    if wanted is None or tuple(x.shape[1:]) == tuple(wanted):
        return x
    if x.dim() != 4 or len(wanted) != 3 or not {x.shape[1], wanted[0]} <= {1, 3}:
        raise UserError(
            f"'{name}' has samples of shape {tuple(x.shape[1:])}, but {type(backbone).__name__} takes "
            f"{tuple(wanted)}: compare data of one kind, or give another backbone."
        )
    if x.shape[1] != wanted[0]:
        x = x.mean(1, keepdim=True) if wanted[0] == 1 else x.expand(-1, 3, -1, -1)
    if tuple(x.shape[2:]) != tuple(wanted[1:]):
        x = F.interpolate(x, size=tuple(wanted[1:]), mode="bilinear", antialias=True)
    return x.contiguous()
