"""Methods with a loss of their own in the inner loop, and outputs that are distributions."""

import pytest
import torch
import torch.nn.functional as F

from inner_options import grouped
from metatransfer import MLP, Episode, MAMLModule


class GaussianMAML(MAMLModule):
    """Regression with a mean and a variance: outputs are a pair, twice as many as there are targets."""

    def inner_loss(self, outputs, targets):
        mean, variance = outputs
        return 0.5 * (variance.log() + (targets - mean).square() / variance).mean()

    def outer_loss(self, states, episode):
        outputs = self.predict_tasks(states[-1], episode.query_x)
        return self.inner_loss(outputs, episode.query_y), outputs


class Pair(torch.nn.Module):
    """Two numbers as a mean and a positive variance."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = torch.nn.Linear(in_features, 2 * out_features)

    def forward(self, x):
        mean, raw = self.linear(x).chunk(2, -1)
        return mean, F.softplus(raw) + 0.01


def curves(tasks=4):
    x = torch.rand(tasks, 10, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    return Episode(x[:, :5], x[:, :5].sin(), x[:, 5:], x[:, 5:].sin())


def built(**options):
    torch.manual_seed(0)
    return GaussianMAML(MLP((1,), (8,)), 1, Pair, **grouped(GaussianMAML, inner_lr=0.01, **options)).double().train()


@pytest.mark.parametrize(
    "options", [{"batching": "vmap"}, {"batching": "vmap", "chunk_size": 2}, {"batching": "threads"}]
)
def test_outputs_may_be_several_tensors(options):
    found = []
    for chosen in ({"batching": "loop"}, options):
        loss, (mean, variance) = built(inner_steps=2, **chosen).training_loss(curves())
        assert mean.shape == variance.shape == (4, 5, 1)
        found.append((loss, mean, variance))
    torch.testing.assert_close(*found)


def test_the_inner_loop_minimises_the_loss_of_the_method():
    module, batch = built(inner_steps=5).eval(), curves()
    before, *_, after = (
        module.inner_loss(module.predict_tasks(state, batch.support_x), batch.support_y)
        for state in module.adapt_through(batch.support_x, batch.support_y, trajectory=True)
    )
    assert after < before
    plain = MAMLModule(MLP((1,), (8,)), 1)
    outputs, targets = torch.randn(5, 1), torch.randn(5, 1)
    assert plain.inner_loss(outputs, targets) == F.mse_loss(outputs, targets)


def test_compiled_steps_take_outputs_of_several_tensors(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    found = [built(batching="vmap", compile=compiled).training_loss(curves()) for compiled in (False, True)]
    torch.testing.assert_close(*found)
