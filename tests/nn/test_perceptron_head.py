"""The head with hidden layers."""

import pytest
import torch
import torch.nn.functional as F

from metatransfer.errors import UserError
from metatransfer.nn import PerceptronHead


def test_it_is_the_label_predictor_of_dann():
    torch.manual_seed(0)
    head = PerceptronHead(768, 10).double()
    shapes = [tuple(value.shape) for value in head.parameters()]
    assert shapes == [(100, 768), (100,), (100, 100), (100,), (10, 100), (10,)]
    first, second, last = (part for part in head.layers if isinstance(part, torch.nn.Linear))
    x = torch.randn(4, 768, dtype=torch.float64)
    torch.testing.assert_close(head(x), last(F.relu(second(F.relu(first(x))))))
    assert (head.in_features, head.out_features) == (768, 10)


def test_without_hidden_layers_it_is_affine():
    assert [tuple(value.shape) for value in PerceptronHead(6, 3, ()).parameters()] == [(3, 6), (3,)]


def test_dropout_is_off_in_evaluation():
    head, x = PerceptronHead(6, 3, [50], dropout=0.5), torch.randn(4, 6)
    assert not torch.equal(head(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden_sizes": (5, -1)}, r"hidden_sizes\[1\] must be a number above 0, but is -1"),
        ({"dropout": 1.0}, "dropout must be a fraction"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        PerceptronHead(6, 3, **arguments)
