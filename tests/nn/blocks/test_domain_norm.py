"""Batch normalisation of several domains."""

import copy

import pytest
import torch
from torch import nn

from metatransfer.errors import UserError
from metatransfer.nn import MLP, DomainBatchNorm, LeNet
from metatransfer.nn.blocks.domain_norm import (
    in_domain,
    reestimate_target_statistics,
    share_source_statistics,
    split_batch_norm,
)


def network(own_affine, **arguments):
    torch.manual_seed(0)
    return split_batch_norm(MLP((3,), (4, 5), norm=True, **arguments).double(), own_affine=own_affine)


def layers(net):
    return [part for part in net.modules() if isinstance(part, DomainBatchNorm)]


def samples(count=8, move=0.0):
    return torch.randn(count, 3, dtype=torch.float64) * (1 + move) + move


def test_each_layer_is_taken_the_place_of_once():
    net = network(own_affine=True)
    assert len(layers(net)) == 2
    assert len(layers(split_batch_norm(LeNet(norm=True), own_affine=False))) == 2
    for layer in layers(net):
        assert isinstance(layer.source, nn.BatchNorm1d)
        assert isinstance(layer.target, nn.BatchNorm1d)


@pytest.mark.parametrize("own_affine", [True, False])
def test_a_domain_sees_its_own_statistics_alone(own_affine):
    net, plain = network(own_affine), MLP((3,), (4, 5), norm=True).double()
    before = copy.deepcopy(net.state_dict())
    with in_domain(net, "source"):
        net(samples())
    after = net.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (".source.running" not in name and "source.num" not in name), name
    with in_domain(net, "target"):
        net(samples(move=2))
    assert not torch.equal(layers(net)[0].source.running_mean, layers(net)[0].target.running_mean)
    assert {len(list(plain.parameters())) + 4 * own_affine} == {len(list(net.parameters()))}


def test_scales_and_shifts_are_shared_or_not():
    for own_affine in (True, False):
        net = network(own_affine)
        with in_domain(net, "target"):
            net(samples()).square().sum().backward()
        layer = layers(net)[0]
        assert (layer.source.weight is layer.target.weight) == (not own_affine)
        assert (layer.source.weight.grad is None) == own_affine
        copied = layers(copy.deepcopy(net))[0]
        assert (copied.source.weight is copied.target.weight) == (not own_affine)


def test_each_domain_against_a_layer_of_its_own():
    net, x = network(own_affine=True), samples(6)
    plain = MLP((3,), (4, 5), norm=True).double()
    plain.load_state_dict({k.replace(".source.", "."): v for k, v in net.state_dict().items() if ".target." not in k})
    with in_domain(net, "source"):
        torch.testing.assert_close(net(x), plain(x))
        net.eval()
        torch.testing.assert_close(net(x), plain.eval()(x))
    assert not torch.allclose(net(x), plain(x))  # the target's, where nothing is said


def test_what_was_before_comes_back_also_after_an_error():
    net = network(own_affine=False)

    def fails():
        with in_domain(net, "source"), in_domain(net, "target"):
            assert layers(net)[0].domain == "target"
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        fails()
    assert {layer.domain for layer in layers(net)} == {"target"}
    with in_domain(net, "source"):
        with in_domain(net, "target"):
            pass
        assert {layer.domain for layer in layers(net)} == {"source"}


def test_share_source_statistics():
    net = network(own_affine=True).train()
    with in_domain(net, "source"):
        net(samples(move=3))
    share_source_statistics(net)
    net.eval()
    x = samples()
    with in_domain(net, "source"):
        expected = net(x)
    assert torch.equal(net(x), expected)


def test_reestimated_statistics_are_means_over_the_batches():
    net = network(own_affine=False, dropout=0.5).train()
    with in_domain(net, "source"):
        net(samples())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [samples(8, move=1) for _ in range(3)]
    modes = {name: part.training for name, part in net.named_modules()}
    reestimate_target_statistics(net, [*batches, samples(1, move=50)])  # one sample has no variance
    first = net.layers[1]
    hidden = [first(part) for part in batches]
    norm = layers(net)[0]
    torch.testing.assert_close(norm.target.running_mean, torch.stack([part.mean(0) for part in hidden]).mean(0))
    torch.testing.assert_close(norm.target.running_var, torch.stack([part.var(0) for part in hidden]).mean(0))
    # the layer after it sees what the first made of its batches, without dropout
    passed = [torch.relu(nn.functional.batch_norm(part, None, None, norm.source.weight, norm.source.bias, True))
              for part in hidden]  # fmt: skip
    second = [part for part in net.layers if isinstance(part, nn.Linear)][1]
    expected = torch.stack([second(part).mean(0) for part in passed]).mean(0)
    torch.testing.assert_close(layers(net)[1].target.running_mean, expected)
    for name, value in net.state_dict().items():
        assert ".target." in name or torch.equal(value, before[name]), name
    assert modes == {name: part.training for name, part in net.named_modules()}
    assert norm.target.momentum == 0.1
    assert not any(value.requires_grad for value in net.buffers())


def test_reestimation_forgets_what_was_there():
    net = network(own_affine=False)
    with in_domain(net, "target"):
        net(samples(move=40))
    parts = [samples() for _ in range(2)]
    reestimate_target_statistics(net, parts)
    first = {name: value.clone() for name, value in net.state_dict().items()}
    reestimate_target_statistics(net, parts)
    assert all(torch.equal(value, first[name]) for name, value in net.state_dict().items())


def test_refusals():
    with pytest.raises(UserError, match="MLP has no BatchNorm layer"):
        split_batch_norm(MLP((3,), (4,)), own_affine=True)
    net = MLP((3,), (4,), norm=True)
    net.layers[2] = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(UserError, match="keeps no running statistics"):
        split_batch_norm(net, own_affine=True)
