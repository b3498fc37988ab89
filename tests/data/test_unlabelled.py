"""Sources without labels and sources that make one: against reading from the parts."""

import numpy as np
import pytest
import torch

from metatransfer.data.sources import TensorSource
from metatransfer.data.unlabelled import (
    NO_CLASS,
    JoinedSource,
    Relabelled,
    first_not_finite,
    joined,
    without_labels,
)

CPU = torch.device("cpu")
X = torch.arange(24, dtype=torch.float32).view(12, 2)


def source(rows, names=("b", "a"), name="some"):
    return TensorSource(X[rows].clone(), np.arange(len(rows)) % len(names), names, name)


def test_labels_are_set_aside():
    base = source(range(6))
    part = without_labels(base)
    assert part.withheld.tolist() == ["b", "a"] * 3
    assert part.source.class_names == (NO_CLASS,)
    assert not part.source.labels.any()
    indices = torch.tensor([[3, 1], [0, 5]])
    assert torch.equal(part.source.read(indices, CPU), base.read(indices, CPU))
    assert part.source.sample_shape == (2,)
    assert part.source.in_memory
    # the same for any labels
    other = TensorSource(X[:6], np.array([0, 0, 0, 1, 1, 1]), ("a", "b"), "other")
    assert without_labels(other).source.fingerprint() == part.source.fingerprint()


def test_relabelled():
    found = Relabelled(source(range(4)), np.array([1, 0, 2, 2]), ("x", "y", "z"))
    assert found.labels.tolist() == [1, 0, 2, 2]
    assert found.sizes.tolist() == [1, 1, 2]


def test_joined():
    one, two = source(range(5)), source(range(5, 12), ("c", "a"))
    both = joined([one, two])
    assert isinstance(both, JoinedSource)
    assert both.class_names == ("b", "a", "c")
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 2, 1, 2, 1, 2, 1, 2]
    indices = torch.tensor([[11, 0, 4], [5, 5, 2]])
    assert torch.equal(both.read(indices, CPU), X[indices])
    assert torch.equal(both.read(torch.tensor([7]), CPU), X[7:8])
    assert both.in_memory
    assert both.fingerprint() != joined([two, one]).fingerprint()
    assert joined([one]) is one


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_found(value):
    one, two = source(range(5)), source(range(5, 12))
    assert first_not_finite(joined([one, two])) is None
    two.data[3, 1] = value
    assert first_not_finite(two) == first_not_finite(Relabelled(two)) == 3
    assert first_not_finite(joined([one, two])) == 8
    assert first_not_finite(TensorSource(X.to(torch.uint8), np.zeros(12, int), ["a"], "bytes")) is None
