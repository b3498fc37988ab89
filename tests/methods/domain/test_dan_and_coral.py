"""DAN and deep CORAL: the discrepancies that they add."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from domain_toys import batch, module

from metatransfer.errors import UserError
from metatransfer.methods.domain.dan import DANModule
from metatransfer.methods.domain.deep_coral import DeepCORALModule


def kernel_discrepancy(source, target):
    """The unbiased squared MMD with five kernels around the median of all squared distances, by double loops."""
    n, m = len(source), len(target)
    both = torch.cat([source, target])
    distances = [[(one - other).square().sum() for other in both] for one in both]
    pairs = torch.stack([distances[i][j] for i in range(n + m) for j in range(n + m) if i != j])
    gamma = pairs.detach().median()

    def k(i, j):
        return sum(torch.exp(-distances[i][j] / (u * gamma)) for u in (0.25, 0.5, 1, 2, 4)) / 5

    own = sum(k(i, j) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(n + i, n + j) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    between = sum(k(i, n + j) for i in range(n) for j in range(m)) / (n * m)
    return own + other - 2 * between


def covariance_distance(source, target):
    def covariance(x):
        mean = sum(x) / len(x)
        return sum(torch.outer(row - mean, row - mean) for row in x) / (len(x) - 1)

    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


def outputs(method, given):
    source, target = method.backbone(given.source_x), method.backbone(given.target_x)
    return {"features": (source, target), "logits": (method.head(source), method.head(target))}


def check(method, given, expected):
    loss, logits = method.training_loss(given)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    parameters = list(method.parameters())
    found = torch.autograd.grad(loss, parameters)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(logits, outputs(method, given)["logits"][0])


@pytest.mark.parametrize("layers", [("features", "logits"), ["logits"], ["features"]])
def test_dan_against_double_loops(layers):
    method = module(DANModule, norm=False, layers=layers, trade_off=0.7).double()
    given = batch(dtype=torch.float64)
    sides = outputs(method, given)
    expected = F.cross_entropy(sides["logits"][0], given.source_y)
    check(method, given, expected + 0.7 * sum(kernel_discrepancy(*sides[layer]) for layer in layers))
    assert method.protocol()["train_layers"] == list(layers)


@pytest.mark.parametrize("layers", [None, ["features"], ["features", "logits"]])
def test_deep_coral_against_double_loops(layers):
    method = module(DeepCORALModule, norm=False, layers=layers, trade_off=3.0).double()
    given = batch(dtype=torch.float64)
    sides = outputs(method, given)
    expected = F.cross_entropy(sides["logits"][0], given.source_y)
    layers = layers or ["logits"]  # the default is the paper's
    check(method, given, expected + 3 * sum(covariance_distance(*sides[layer]) for layer in layers))
    assert method.protocol()["train_layers"] == layers


@pytest.mark.parametrize("kind", [DANModule, DeepCORALModule])
def test_without_a_weight_it_is_the_source_alone(kind):
    method, given = module(kind, norm=False, trade_off=0.0).double(), batch(dtype=torch.float64)
    loss, logits = method.training_loss(given)
    torch.testing.assert_close(loss, F.cross_entropy(logits, given.source_y))


def test_refusals():
    for kind in (DANModule, DeepCORALModule):
        with pytest.raises(UserError, match="trade_off must be 0 or more"):
            module(kind, trade_off=-1)
    with pytest.raises(UserError, match="layers must be one of features, logits, but is 'logit'"):
        module(DANModule, layers=["logit"])
    for layers in ([], ["logits", "logits"]):
        with pytest.raises(UserError, match="layers must name features, logits or both, each once"):
            module(DANModule, layers=layers)
    with pytest.raises(UserError, match="layers must be one of features, logits, but is 'last'"):
        module(DeepCORALModule, layers=["last"])
