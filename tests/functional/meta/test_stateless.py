"""BatchNorm policies against hand-made layer-by-layer references; nothing is ever mutated."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatransfer.errors import UserError
from metatransfer.functional import batch_norm_layers, stateless


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3, eps=1e-2), nn.Tanh(),
        nn.Flatten(), nn.Linear(27, 5), nn.BatchNorm1d(5),
    ).double()  # fmt: skip
    for layer in batch_norm_layers(net).values():
        nn.init.uniform_(layer.weight, 0.5, 2.0)
        nn.init.uniform_(layer.bias, -1.0, 1.0)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    return net.train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    support = torch.randn(6, 2, 6, 6, generator=generator, dtype=torch.float64)
    return support, torch.randn(9, 2, 6, 6, generator=generator, dtype=torch.float64) * 3 + 1  # another distribution


def by_support(net, support, query):
    """Layer by layer: both sides are normalised by what the support alone shows."""
    for layer in net:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            axes = [0, *range(2, support.dim())]
            shape = [1, -1] + [1] * (support.dim() - 2)
            mean, var = support.mean(axes), support.var(axes, unbiased=False)
            support, query = (
                (side - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt() * layer.weight.view(shape)
                + layer.bias.view(shape)
                for side in (support, query)
            )
        else:
            support, query = layer(support), layer(query)
    return support, query


@pytest.mark.parametrize("training", [True, False])
def test_support_policy(net, batch, training):
    support, query = batch
    forward = stateless(net.train(training))
    found = forward(dict(net.named_parameters()), torch.cat(batch), len(support))
    expected_support, expected_query = by_support(net, support, query)
    torch.testing.assert_close(found[: len(support)], expected_support, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found[len(support) :], expected_query, rtol=1e-11, atol=1e-12)
    one = forward(dict(net.named_parameters()), torch.cat([support, query[3:4]]), len(support))
    torch.testing.assert_close(one[len(support) :], expected_query[3:4], rtol=1e-11, atol=1e-12)


def test_support_policy_differs_from_transductive(net, batch):
    params = dict(net.named_parameters())
    forward = stateless(net)
    assert (forward(params, torch.cat(batch), 6)[6:] - forward(params, torch.cat(batch))[6:]).abs().max() > 0.1
    torch.testing.assert_close(forward(params, batch[0], 6), forward(params, batch[0]))


@pytest.mark.parametrize("training", [True, False])
def test_transductive_policy_is_plain_training_mode(net, batch, training):
    expected = copy.deepcopy(net).train()(batch[1])
    found = stateless(net.train(training))(dict(net.named_parameters()), batch[1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
def test_running_policy_is_plain_evaluation_mode(net, batch, training):
    expected = copy.deepcopy(net).eval()(batch[1])
    forward = stateless(net.train(training), running=True)
    torch.testing.assert_close(forward(dict(net.named_parameters()), batch[1]), expected, rtol=1e-12, atol=1e-13)
    one = forward(dict(net.named_parameters()), batch[1][:1])
    torch.testing.assert_close(one, expected[:1], rtol=1e-12, atol=1e-13)


def test_running_policy_needs_running_averages():
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    with pytest.raises(UserError, match=r"layer '1\.0' .*track_running_stats=False.*'transductive' or 'support'"):
        stateless(net, running=True)
    stateless(net)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("running", [False, True])
def test_nothing_is_mutated(net, batch, running, rows):
    before = copy.deepcopy(net.state_dict())
    output = stateless(net, running=running)(dict(net.named_parameters()), batch[0], rows)
    output.sum().backward()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    net.train()(batch[0])  # the plain module still collects
    assert not torch.equal(before["1.running_mean"], net[1].running_mean)


def test_given_parameters_are_used_and_the_rest_is_the_modules(net, batch):
    params = {name: torch.zeros_like(value) for name, value in net.named_parameters() if name == "9.weight"}
    found = stateless(net)(params, batch[0])
    torch.testing.assert_close(found, net[9].bias.expand_as(found))
    scaled = {"9.weight": 2 * net[9].weight, "9.bias": 2 * net[9].bias}
    forward = stateless(net)
    torch.testing.assert_close(forward(scaled, batch[0]), 2 * forward({}, batch[0]))


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_the_native_one(kind, affine):
    torch.manual_seed(0)
    layer = kind(3, affine=affine, eps=1e-2).double()
    for value in layer.parameters():
        nn.init.uniform_(value, 0.5, 2.0)
    x = torch.randn(4, 3, *[5] * int(kind.__name__[-2]), dtype=torch.float64)
    torch.testing.assert_close(stateless(layer)(dict(layer.named_parameters()), x), layer(x))


def test_instance_norm_with_running_averages_is_not_mutated():
    layer = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).train()
    before = copy.deepcopy(layer.state_dict())
    stateless(layer)(dict(layer.named_parameters()), torch.randn(4, 3, 5, 5))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_instance_norm_with_running_averages_uses_them_in_evaluation():
    torch.manual_seed(0)
    layer = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval()
    layer.running_mean.fill_(2.0)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(stateless(layer)(dict(layer.named_parameters()), x), layer(x))


def test_buffers_of_other_layers_are_not_mutated():
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).train()
    before = copy.deepcopy(layer.state_dict())
    stateless(layer)(dict(layer.named_parameters()), torch.randn(5, 4))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_shared_layers_and_nested_names():
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.Sequential(nn.Linear(4, 4), shared)).double()
    assert list(batch_norm_layers(net)) == ["1"]
    x = torch.randn(7, 4, dtype=torch.float64)
    params = dict(net.named_parameters()) | {"1.weight": torch.full((4,), 3.0, dtype=torch.float64)}
    found = stateless(net)(params, x)
    normal = lambda h: F.batch_norm(h, None, None, training=True) * 3  # noqa: E731
    torch.testing.assert_close(found, normal(net[2][0](normal(net[0](x)))))


def test_hooks_still_run(net, batch):
    seen = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    stateless(net)(dict(net.named_parameters()), batch[0])
    assert seen == [torch.Size([6, 4, 6, 6])]


def test_a_forward_that_was_put_on_the_instance_comes_back():
    """Tools such as feature extractors and compilers replace ``forward`` on instances too."""
    layer = nn.BatchNorm1d(2)
    layer.forward = replacement = lambda x: x * 0
    stateless(layer)(dict(layer.named_parameters()), torch.randn(3, 2))
    assert layer.__dict__.get("forward") is replacement


def test_statistics_are_as_precise_under_autocast_as_the_native_ones():
    """Support statistics of channels far from 0 must not be rounded to bfloat16 (the native layer keeps float32)."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3)
    x = (torch.randn(64, 3, 8, 8) + 20).bfloat16()
    params = dict(layer.named_parameters())
    exact = stateless(layer)(params, x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        native = stateless(layer)(params, x)
        rows = stateless(layer)(params, x, len(x))
    bound = 2 * (native.float() - exact).abs().max()
    assert (rows.float() - exact).abs().max() <= bound


@pytest.mark.parametrize("rows", [None, 1])
def test_batch_norm_of_one_value_a_channel_is_refused(rows):
    """Its output would be its shift, whatever the sample."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    forward = stateless(network)
    with pytest.raises(UserError, match="needs at least 2 values for each of its 3 channels, but a task has only 1"):
        forward({}, torch.rand(1 if rows is None else 4, 2, dtype=torch.float64), rows)
    forward({}, torch.rand(2, 2, dtype=torch.float64))
    stateless(network, running=True)({}, torch.rand(1, 2, dtype=torch.float64))
