"""Sources without labels and sources that make one: against reading from the parts."""

import numpy as np
import pytest
import torch

from metatransfer.batches import Tokens
from metatransfer.data.sources import (
    NO_CLASS,
    JoinedSource,
    Source,
    TensorSource,
    base,
    joined,
    of_classes,
    subset,
    without_labels,
)
from metatransfer.errors import UserError

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
def test_what_is_not_finite_is_found(value, monkeypatch):
    bad = X.clone()
    bad[3, 1] = value
    with pytest.raises(UserError, match=r"^some: sample 3 contains NaN or infinity: fix or remove it[.]$"):
        TensorSource(bad, np.zeros(12, int), ["a"], "some")
    monkeypatch.setattr(base, "_CHUNK", 4)  # two samples at once
    assert base.finite_rows(bad).tolist() == [row != 3 for row in range(12)]
    assert base.finite_rows(X.to(torch.uint8)).all()


def test_a_subset_is_what_a_source_of_its_samples_would_be():
    base, rows = source(range(8)), np.array([6, 1, 2])
    view = subset(base, rows, ("a", "c", "b"))
    assert view.labels.tolist() == [2, 0, 2]
    assert view.sizes.tolist() == [1, 0, 2]
    assert torch.equal(view.read(torch.tensor([[2], [0]]), CPU), X[[2, 6]][:, None])
    alone = TensorSource(X[rows].clone(), [0, 1, 0], ("b", "a"), "alone")
    assert subset(base, rows).fingerprint() == alone.fingerprint()
    assert view.show(1) == alone.show(1) == "2, 3"


def test_of_classes():
    base = TensorSource(X, np.arange(12) % 4, list("abcd"), "base", ["g", "h", "g", "h"])
    view = of_classes(base, ["d", "a"], "two")
    assert view.class_names == ("d", "a")
    assert view.groups == ("h", "g")
    assert view.indices.tolist() == [0, 3, 4, 7, 8, 11]
    assert view.labels.tolist() == [1, 0, 1, 0, 1, 0]


class Words(Source):
    """Texts of as many tokens as their number says."""

    def __init__(self, count):
        super().__init__(np.arange(count) % 2, ["a", "b"], "words")

    @property
    def sample_shape(self):
        return ()

    def read(self, indices, device):
        longest = int(indices.max()) + 1
        mask = (torch.arange(longest) <= indices[..., None]).long()
        return Tokens(mask * (indices[..., None] + 1), mask)

    def lengths(self, indices):
        return indices + 1


def test_joined_texts_are_padded_together():
    both = joined([Words(2), Words(5)])
    assert both.lengths(np.array([6, 0, 2])).tolist() == [5, 1, 1]
    read = both.read(torch.tensor([[6, 0], [2, 1]]), CPU)
    assert read.ids.shape == read.mask.shape == (2, 2, 5)
    assert read.mask.sum(-1).tolist() == [[5, 1], [1, 2]]
    assert read.ids[0, 0].tolist() == [5] * 5


def test_float_targets_are_no_classes():
    regression = TensorSource(X, X[:, :1], (), "numbers")
    assert not regression.is_labelled
    assert regression.targets.shape == (12, 1)
    bad = X[:, :1].clone()
    bad[5] = float("inf")
    with pytest.raises(UserError, match="numbers: the target of sample 5 is NaN or infinite"):
        TensorSource(X, bad, (), "numbers")
    with pytest.raises(UserError, match="numbers has numbers as targets"):
        regression.labels  # noqa: B018
