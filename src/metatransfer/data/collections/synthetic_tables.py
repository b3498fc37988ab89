"""Classification tasks on tables: drawn from random causal models and clusters."""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_count
from metatransfer.data.sources import SPLITS, Collection, TaskGenerator
from metatransfer.errors import UserError
from metatransfer.functional.random import Bits, random_uniforms

_CAUSES, _WIDTH = 8, 32  # independent causes, and nodes of each of the three layers that follow


class SyntheticTables(Collection):
    r"""Tables drawn from a prior, after TabPFN (Hollmann et al. 2023, 2207.01848): learn a class from a few rows.

    Each task has its own random causal model: a network of three layers with random weights, activation and noise,
    whose inputs are independent causes. Its nodes are the columns; the class is

    - an interval of one other node, or the largest of several nodes, which may come before or after the columns; or
    - the cluster that the row belongs to, with the nodes as its shape.

    Some columns are rounded, binary or skewed. Samples are float tensors ``(max_features,)``; a table with fewer
    columns ends in columns of 0. A task has ``num_shots`` times ``max_classes`` support samples, at least one of each
    class, and ``num_queries`` times ``max_classes`` queries. The number of columns, of classes and their sizes vary
    between tasks; the number of ways has no effect. The tasks are generated, so training, validation and test have any
    number of tasks and share none.

    The prior is far smaller than TabPFN's, which also has Bayesian networks and missing values.

    Args:
        max_features: largest number of columns.
        max_classes: largest number of classes.
        min_shots: smallest number of support samples of a task, divided by ``max_classes``. If it is given, the number
            varies between it and ``num_shots`` of the task from one block of 16 tasks to the next, and the other rows
            are queries.

    Raises:
        UserError: a number out of range.
    """

    divided_by = "class"

    def __init__(self, max_features: int = 32, max_classes: int = 5, min_shots: int | None = None) -> None:
        check_count(2, max_features=max_features, max_classes=max_classes)
        check_count(min_shots=min_shots)
        most = _CAUSES + 2 * _WIDTH
        if max_features > most or max_classes > _WIDTH:
            raise UserError(
                f"SyntheticTables has at most {most} features and {_WIDTH} classes, but max_features={max_features} "
                f"and max_classes={max_classes}: lower them."
            )
        self.generator = CausalTables(max_features, max_classes, min_shots)

    def parts(self) -> Mapping[str, TaskGenerator]:
        """A generator for each split."""
        return dict.fromkeys(SPLITS, self.generator)


class CausalTables(TaskGenerator):
    """Tables, each with its own random stream."""

    def __init__(self, max_features: int, max_classes: int, min_shots: int | None) -> None:
        self.max_features, self.max_classes, self.min_shots = max_features, max_classes, min_shots

    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Draws on the CPU, in float64, and returns float32."""
        draws, rows = Draws(keys), (num_shots + num_queries) * self.max_classes
        nodes, targets = causal_model(draws, rows)
        ways = 2 + ((self.max_classes - 1) * draws.uniform() ** 2).long()
        shares = class_shares(draws.uniform(self.max_classes), ways)
        clusters, kind = draws.categories(rows, shares), draws.uniform(1)
        labels = torch.where(kind < 0.35, intervals(targets[..., 0], shares), largest(targets, shares))
        clustered = (kind > 0.7) | (labels == labels[:, :1]).all(1, keepdim=True)  # a table needs a second class
        labels, x = torch.where(clustered, clusters, labels), self._columns(draws, nodes)
        x = curved(torch.where(clustered.unsqueeze(-1), x + self._centres(draws, clusters), x), draws)
        number = 2 + ((self.max_features - 1) * draws.uniform(1, 1)).long()
        x = x * (torch.arange(self.max_features) < number)
        return _episode(x.float(), labels, num_shots * self.max_classes, device)

    def _columns(self, draws: "Draws", nodes: Tensor) -> Tensor:
        """Random nodes ``(T, N, max_features)``."""
        chosen = draws.uniform(nodes.shape[-1]).argsort(-1)[:, None, : self.max_features]
        return nodes.gather(-1, chosen.expand(-1, nodes.shape[1], -1))

    def _centres(self, draws: "Draws", clusters: Tensor) -> Tensor:
        """The centre ``(T, N, max_features)`` of the cluster of each row; columns differ in how much they tell."""
        size = (0.5 + 2 * draws.uniform(1, 1)) * draws.uniform(1, self.max_features)
        centres = draws.normal(self.max_classes, self.max_features) * size
        return centres.gather(1, clusters.unsqueeze(-1).expand(-1, -1, self.max_features))


class Draws:
    """Random numbers of tasks, drawn one after the other from the stream of each; all are float64."""

    def __init__(self, keys: Bits) -> None:
        self.keys, self.start = keys, 0

    def uniform(self, *shape: int) -> Tensor:
        """``(T, *shape)`` in [0, 1)."""
        count = math.prod(shape)
        found = random_uniforms(self.keys, count, start=self.start).astype(np.float64)
        self.start += count
        return torch.from_numpy(found).view(len(self.keys), *shape)

    def normal(self, *shape: int) -> Tensor:
        """``(T, *shape)`` standard normal."""
        # uniforms are multiples of 2^-24 and may be 0, whose normal quantile is infinite
        return torch.from_numpy(ndtri(self.uniform(*shape).numpy() + 2.0**-25))

    def categories(self, count: int, shares: Tensor) -> Tensor:
        """``(T, count)`` classes with the probabilities ``shares`` ``(T, C)``."""
        return _interval(self.uniform(count), shares)


def causal_model(draws: Draws, rows: int) -> tuple[Tensor, Tensor]:
    """Nodes for columns ``(T, rows, 72)`` and nodes for classes ``(T, rows, 32)``, standardised."""
    causes = draws.normal(rows, _CAUSES)
    active = draws.uniform(1, _CAUSES) < 0.1 + 0.9 * draws.uniform(1, 1)
    kept, noise = 0.1 + 0.9 * draws.uniform(1, 1), 10 ** (2 * draws.uniform(1, 1) - 2.7)
    kind, forward = draws.uniform(1, 1), draws.uniform(1, 1) < 0.5
    layers, x = [], causes * active
    for _ in range(3):
        weights = draws.normal(x.shape[-1], _WIDTH) * (draws.uniform(x.shape[-1], _WIDTH) < kept)
        x = _standard(x @ weights)
        x = _standard(activated(x + 0.5 * draws.normal(1, _WIDTH), kind) + noise * draws.normal(rows, _WIDTH))
        layers.append(x)
    first, last = torch.where(forward, layers[0], layers[2]), torch.where(forward, layers[2], layers[0])
    return torch.cat([causes, first, layers[1]], -1), last


def activated(x: Tensor, kind: Tensor) -> Tensor:
    """Values ``(T, ...)`` after the activation that ``kind`` in [0, 1) selects for each task."""
    for limit, function in ((0.75, torch.tanh), (0.5, F.relu), (0.25, torch.sin)):
        x = torch.where((kind >= limit) & (kind < limit + 0.25), function(2 * x), x)
    return x


def class_shares(u: Tensor, ways: Tensor) -> Tensor:
    """``(T, C)`` sizes of the classes, 0 beyond the ``ways`` of a task, from uniform numbers."""
    parts = (0.25 + u) * (torch.arange(u.shape[1]) < ways[:, None])
    return parts / parts.sum(1, keepdim=True)


def intervals(values: Tensor, shares: Tensor) -> Tensor:
    """Classes ``(T, N)`` as intervals of ``values`` ``(T, N)`` that hold the given shares of the rows."""
    ranks = (values.argsort(dim=-1, stable=True).argsort(-1) + 0.5) / values.shape[1]
    return _interval(ranks, shares)


def largest(values: Tensor, shares: Tensor) -> Tensor:
    """Classes ``(T, N)`` as the largest of the values ``(T, N, >= C)``, raised for classes with a larger share."""
    return (values[..., : shares.shape[1]] + shares.log().unsqueeze(1)).argmax(-1)


def curved(x: Tensor, draws: Draws) -> Tensor:
    """Columns ``(T, N, E)``, of which some are rounded, binary or skewed."""
    kind = draws.uniform(1, x.shape[-1])
    x = torch.where(kind < 0.15, x.round(), x)
    x = torch.where((kind > 0.15) & (kind < 0.25), (x > draws.normal(1, x.shape[-1])).double(), x)
    return torch.where(kind > 0.9, x.clamp(max=6).exp(), x)


def _interval(places: Tensor, shares: Tensor) -> Tensor:
    ends = shares.cumsum(1)[:, None, :-1]
    return (places.unsqueeze(-1) >= ends - 1e-9).sum(-1)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-3)


def _episode(x: Tensor, labels: Tensor, num_shots: int, device: torch.device) -> Episode:
    """Splits the rows so that each class has a support sample."""
    members = F.one_hot(labels)
    first = ((members.cumsum(1) == 1) & (members == 1)).any(-1)
    order = (~first).to(torch.uint8).argsort(dim=1, stable=True)
    x, labels = x.gather(1, order.unsqueeze(-1).expand_as(x)).to(device), labels.gather(1, order).to(device)
    return Episode(x[:, :num_shots], labels[:, :num_shots], x[:, num_shots:], labels[:, num_shots:])
