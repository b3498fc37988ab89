"""LeNet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatransfer.errors import UserError
from metatransfer.nn import LeNet


def test_it_is_the_feature_extractor_of_dann():
    torch.manual_seed(0)
    network = LeNet().double()
    assert network.out_features == 768
    first, second = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    assert [tuple(value.shape) for value in network.parameters()] == [(32, 1, 5, 5), (32,), (48, 32, 5, 5), (48,)]
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    expected = F.max_pool2d(F.relu(first(x)), 2)
    expected = F.max_pool2d(F.relu(second(expected)), 2).flatten(1)
    torch.testing.assert_close(network(x), expected)


def test_a_fully_connected_layer_makes_the_features():
    torch.manual_seed(0)
    network, plain = LeNet(hidden_size=7, channels=(3, 4)).double(), LeNet(channels=(3, 4)).double()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if name.startswith("blocks")})
    assert network.out_features == 7
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    layer = next(part for part in network.modules() if isinstance(part, nn.Linear))
    torch.testing.assert_close(network(x), F.relu(layer(plain(x))))


@pytest.mark.parametrize(
    ("arguments", "features"),
    [
        ({"in_channels": 3, "image_size": 32}, 48 * 25),
        ({"channels": (4,)}, 4 * 144),
        ({"channels": [2, 3, 4], "image_size": 48}, 4 * 4),
        ({"norm": True, "dropout": 0.5, "channels": (4, 6)}, 96),
    ],
)
def test_sizes_follow_the_arguments(arguments, features):
    network = LeNet(**arguments)
    assert network.out_features == features
    for mode in (True, False):
        assert network.train(mode)(torch.randn(2, *network.in_shape)).shape == (2, features)
    network.check_input(network.in_shape)
    with pytest.raises(UserError, match="LeNet was built for samples of shape"):
        network.check_input((9, 9, 9))


def test_construction_leaves_statistics_fresh():
    norms = [part for part in LeNet(norm=True).modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(int(part.num_batches_tracked) == 0 and part.training for part in norms)


def test_every_layer_can_be_drawn_anew_and_gets_a_gradient():
    network = LeNet(norm=True, channels=(3, 4))
    network(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())
    before = copy.deepcopy(network.state_dict())
    for part in network.modules():
        if part._parameters:
            part.reset_parameters()
    assert not torch.equal(before["blocks.0.weight"], network.state_dict()["blocks.0.weight"])


def test_it_starts_from_weights_of_a_file(tmp_path):
    known = LeNet(channels=(3, 4))
    torch.save(known.state_dict(), tmp_path / "known.pt")
    network = LeNet(channels=(3, 4), weights=str(tmp_path / "known.pt"))
    assert all(torch.equal(*pair) for pair in zip(known.parameters(), network.parameters(), strict=True))
    assert network.weights_report is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": ()}, "LeNet needs at least one block"),
        ({"channels": (4, 0)}, "channels must be a number above 0, but is 0"),
        ({"hidden_size": 0}, "hidden_size must be a number above 0, but is 0"),
        ({"image_size": 11}, r"LeNet cannot process samples of shape \(1, 11, 11\)"),
        ({"dropout": -0.1}, "dropout must be a fraction"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        LeNet(**arguments)
