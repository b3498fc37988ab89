"""The dataset distance against all permutations, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from messages import keep
from metatransfer.errors import UserError
from metatransfer.functional.domain.transport import dataset_distance


def samples(n, seed, classes=2):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=make, dtype=torch.float64), torch.arange(n) % classes


def slow_distance(x, y, z, w, rows=(None, None)):
    """Over the chosen rows of both sides; classes are described by all rows."""
    mine, others = (
        list(range(len(one))) if chosen is None else chosen for one, chosen in zip((x, z), rows, strict=True)
    )

    def cost(i, j):
        same, other = x[y == y[i]], z[w == w[j]]
        means = (same.mean(0) - other.mean(0)).square().sum()
        spreads = (same.std(0, correction=0) - other.std(0, correction=0)).square().sum()
        return float((x[i] - z[j]).square().sum() + means + spreads)

    costs = [[cost(i, j) for j in others] for i in mine]
    orders = itertools.permutations(range(len(mine)))
    return min(sum(costs[i][j] for i, j in enumerate(order)) / len(mine) for order in orders) ** 0.5


def test_the_best_of_all_permutations():
    x, y = samples(6, 0)
    z, w = samples(6, 1, classes=3)
    assert float(dataset_distance(x, y, z, w + 5)) == pytest.approx(slow_distance(x, y, z, w), abs=1e-10)


def test_properties():
    x, y = samples(40, 0)
    z, w = samples(40, 1, classes=4)
    value = float(dataset_distance(x, y, z, w))
    order = torch.randperm(40)
    assert float(dataset_distance(x[order], y[order], x, y)) == pytest.approx(0, abs=1e-12)
    assert float(dataset_distance(z, w, x, y)) == pytest.approx(value)
    assert float(dataset_distance(x + 3, y, z + 3, w)) == pytest.approx(value)
    assert float(dataset_distance(x, y, x, y.flip(0) * 0)) < float(dataset_distance(x, y, x + 5, y))
    classes = (x[:, 0] > 0).long()  # labels that follow the samples are far from labels that do not
    assert float(dataset_distance(x, classes, x, y)) > 0.1


def test_the_larger_side_is_reduced_to_the_same_samples_and_its_classes_are_not():
    x, y = samples(12, 0)
    z, w = samples(5, 1)
    kept = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:5].tolist()
    expected = pytest.approx(slow_distance(x, y, z, w, (kept, None)), abs=1e-10)
    assert float(dataset_distance(x, y, z, w)) == expected
    assert float(dataset_distance(z, w, x, y)) == expected


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": torch.ones(4)}, "(4,)"),
        ({"source_y": torch.ones(4)}, "float32"),
        ({"target": torch.ones(4, 2)}, "(4, 2)"),
        ({"target": torch.full((4, 3), torch.inf)}, "finite"),
    ],
)
def test_wrong_arguments(changed, words):
    good = {"source": torch.ones(4, 3), "target": torch.ones(4, 3)}
    labels = {"source_y": torch.arange(4), "target_y": torch.arange(4)}
    with pytest.raises(UserError) as caught:
        dataset_distance(**{**good, **labels, **changed})
    assert words in keep(str(caught.value))
