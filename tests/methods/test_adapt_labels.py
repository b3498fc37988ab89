"""Labels of any kind are learned and given back, or one sentence says which cannot be."""

import numpy as np
import pytest
import torch

from metatransfer import MLP, ProtoNetModule, UserError

X = torch.tensor([[0.0, 0.0], [0.0, 0.1], [9.0, 9.0], [9.0, 9.1]])
NAN = float("nan")


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return ProtoNetModule(MLP((2,), (8,)))


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "cat", "dog", "dog"],
        [("a", 1), ("a", 1), ("b", 2), ("b", 2)],
        [True, True, False, False],
        ["cat", "cat", 3, 3],
        np.array(["cat", "cat", "dog", "dog"]),
        np.array(["cat", "cat", "dog", "dog"], object),
        np.array([b"cat", b"cat", b"dog", b"dog"]),
        np.array([True, True, False, False]),
        np.array([7, 7, 3, 3], np.uint8),
        torch.tensor([True, True, False, False]),
        torch.tensor([200, 200, 3, 3], dtype=torch.uint8),
        torch.tensor([5, 5, 3, 3], dtype=torch.int16),
    ],
    ids=str,
)
def test_labels_come_back(module, labels):
    found = module.adapt(X, labels).predict(X)
    assert type(found) is type(labels)
    assert list(found) == list(labels)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["cat", None, "dog", "dog"], "support_y contains None for sample 1"),
        ([0, 0, NAN, 1], "support_y contains nan for sample 2"),
        (np.array(["cat", "cat", None, "dog"], object), "support_y contains None for sample 2"),
        (np.array(["cat", "cat", 1, "dog"], object), "support_y mixes int and str"),
        (np.array([1, 1, NAN, 0], object), "support_y contains nan for sample 2"),
        (torch.tensor([0, 0, NAN, 1]), "support_y contains NaN or infinity for sample 2"),
        (torch.zeros(4, dtype=torch.complex64), "support_y is complex64"),
        (torch.tensor([[0], [0], [1], [1]]), "use its only column"),
        ([], "has 4 samples, but support_y has 0 labels"),
    ],
    ids=str,
)
def test_labels_that_cannot_be(module, labels, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        module.adapt(X, labels)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16, torch.double])
def test_samples_of_other_floats(module, kind):
    assert module.adapt(X.to(kind), list("aabb")).predict(X.to(kind)) == list("aabb")


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_samples_that_are_no_floats(module, kind):
    with pytest.raises(UserError, match="support_x must be floating point, images in"):
        module.adapt(X.to(kind), list("aabb"))
