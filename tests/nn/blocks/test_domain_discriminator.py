"""The network that tells domains apart."""

import pytest
import torch
import torch.nn.functional as F

from metatransfer.errors import UserError
from metatransfer.nn import DomainDiscriminator


def test_it_answers_one_number_for_each_sample():
    torch.manual_seed(0)
    network = DomainDiscriminator(5, (4, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    hidden = F.relu(network.network[0](x))
    hidden = F.relu(network.network[3](hidden))
    expected = network.network[6](hidden)[:, 0]
    torch.testing.assert_close(network(x), expected)
    assert network(x[:1]).shape == (1,)
    assert [tuple(value.shape) for value in network.parameters()] == [(4, 5), (4,), (3, 4), (3,), (1, 3), (1,)]


def test_that_of_the_paper_has_one_hidden_layer_of_100():
    assert [tuple(value.shape) for value in DomainDiscriminator(768).parameters()][:1] == [(100, 768)]


def test_no_hidden_layer_makes_it_linear():
    network = DomainDiscriminator(5, ())
    assert [tuple(value.shape) for value in network.parameters()] == [(1, 5), (1,)]


def test_dropout_is_off_in_evaluation():
    network, x = DomainDiscriminator(5, (64,), dropout=0.5), torch.randn(8, 5)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_features": 0}, "in_features must be a number above 0, but is 0"),
        ({"in_features": 3, "hidden_sizes": (4, 0)}, r"hidden_sizes\[1\] must be a number above 0, but is 0"),
        ({"in_features": 3, "dropout": 1.0}, "dropout must be a fraction from 0 to below 1, but is 1.0"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        DomainDiscriminator(**arguments)
