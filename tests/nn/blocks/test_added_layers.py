"""Layers with something added: against written-out formulas, before and after merging."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatransfer.nn.blocks import BottleneckLayer, LowRankLayer, ResidualConvLayer, merge_added, remove_added
from metatransfer.nn.blocks.added_layers import AddedLayer

BASES = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "without bias": (lambda: nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "image": (lambda: nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, dilation=2), (2, 3, 9, 9)),
    "reflected": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 9, 9)),
    "sound": (lambda: nn.Conv1d(3, 5, 3, padding="same"), (2, 3, 9)),
    "volume": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 3, 3, 3)),
}
bases = pytest.mark.parametrize("base", BASES)


def drawn(layer):
    """The layer in float64 with random additions."""
    layer = layer.double()
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_()
    return layer.eval()


def built(name):
    torch.manual_seed(0)
    make, shape = BASES[name]
    return make(), torch.randn(shape, dtype=torch.float64)


@bases
def test_low_rank(base):
    plain, x = built(base)
    plain = plain.double()
    start = LowRankLayer(plain, 2, 3.0)
    assert torch.equal(start(x), plain(x))
    layer = drawn(start)
    down, up = layer.lora_A.weight.flatten(1), layer.lora_B.weight.flatten(1)
    change = torch.stack([1.5 * sum(row[r] * down[r] for r in range(2)) for row in up])
    expected = copy.deepcopy(layer.base)
    expected.weight.data += change.view_as(expected.weight)
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-12, atol=1e-12)
    merged = layer.merged()
    assert type(merged) is type(plain)
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight, merged.weight)
    assert layer.bias is layer.base.bias


def test_dropout_is_on_the_inputs_of_the_change_alone():
    layer = drawn(LowRankLayer(nn.Linear(50, 1), 1, 1.0, dropout=0.5)).train()
    x = torch.ones(1, 50, dtype=torch.float64)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    kept = F.dropout(x, 0.5)
    expected = layer.base(x) + kept @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, layer.eval()(x))


@pytest.mark.parametrize("base", [name for name in BASES if name not in ("linear", "without bias")])
def test_residual_adapters_of_convolutions(base):
    plain, x = built(base)
    start = ResidualConvLayer(plain.double())
    assert torch.equal(start(x), plain(x))
    layer = drawn(start)
    y, adapter = layer.base(x), layer.adapter.weight.flatten(1)
    expected = y + torch.einsum("oc,nc...->no...", adapter, y)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-11, atol=1e-11)


def test_bottlenecks():
    layer = BottleneckLayer(nn.Linear(6, 5), 3)
    assert (layer(torch.ones(1, 6)) - layer.base(torch.ones(1, 6))).abs().max() < 1e-2
    layer = drawn(layer)
    x = torch.randn(2, 6, dtype=torch.float64)
    y = layer.base(x)
    inner = y @ layer.down.weight.T + layer.down.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(layer(x), y + inner @ layer.up.weight.T + layer.up.bias)
    assert layer.merged() is None


def test_a_network_that_reads_the_weight_and_one_that_uses_a_layer_twice():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    layer = drawn(LowRankLayer(attention.out_proj, 1, 1.0))
    attention.out_proj = layer
    found = attention(x, x, x)[0]
    merge_added(attention)
    torch.testing.assert_close(attention(x, x, x)[0], found)
    attention.out_proj = layer.base
    assert not torch.allclose(attention(x, x, x)[0], found)
    shared = drawn(LowRankLayer(nn.Linear(4, 4), 1, 1.0))
    network = nn.Sequential(shared, nn.ReLU(), shared)
    expected = network(x)
    merge_added(network)
    assert network[0] is network[2]
    torch.testing.assert_close(network(x), expected)


def test_removing_gives_the_layers_back():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    network = nn.Sequential(LowRankLayer(first, 1, 1.0), nn.Sequential(BottleneckLayer(second, 2)))
    merge_added(network)
    assert isinstance(network[1][0], AddedLayer)
    remove_added(network)
    assert network[1][0] is second
