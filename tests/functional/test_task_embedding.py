"""The Fisher information against loops of autograd, and the distance of tasks, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from messages import keep
from metatransfer import Conv4
from metatransfer.errors import UserError
from metatransfer.functional import diagonal_fisher, stateless, task2vec, task2vec_distance, task_embedding


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double()


def slow_fisher(module, x, classes=None):
    """A backward pass for each sample and class; of given classes ``(N, S)`` the mean, else the expectation."""
    params = dict(module.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for place, one in enumerate(x):
        log_p = module(one.unsqueeze(0))[0].log_softmax(-1)
        chosen = range(len(log_p)) if classes is None else classes[place].tolist()
        for label in chosen:
            weight = float(log_p[label].detach().exp()) if classes is None else 1 / len(chosen)
            slopes = torch.autograd.grad(log_p[label], list(params.values()), retain_graph=True)
            for name, slope in zip(params, slopes, strict=True):
                total[name] += weight * slope.square() / len(x)
    return total


@pytest.mark.parametrize("limit", [1, 2**25])
def test_fisher_is_the_loop_over_samples_and_classes(limit, monkeypatch):
    monkeypatch.setattr(task_embedding, "_VALUES", limit)
    module, x = network(), torch.randn(7, 5, dtype=torch.float64)
    found = diagonal_fisher(stateless(module), dict(module.named_parameters()), x)
    for name, value in slow_fisher(module, x).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)


def test_fisher_of_a_convolutional_network_with_running_statistics():
    torch.manual_seed(0)
    module = nn.Sequential(Conv4(hidden_channels=4), nn.Linear(4, 3)).double()
    module(torch.rand(8, 1, 28, 28, dtype=torch.float64))
    module.eval()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    found = diagonal_fisher(stateless(module, running=True), dict(module.named_parameters()), x)
    for name, value in slow_fisher(module, x).items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)


def test_drawn_labels_are_those_of_the_generator_and_their_mean_is_exact():
    module, x = network(), torch.randn(4, 5, dtype=torch.float64)
    params, forward = dict(module.named_parameters()), stateless(module)
    drawn = torch.multinomial(module(x).softmax(-1), 2, replacement=True, generator=torch.Generator().manual_seed(3))
    found = diagonal_fisher(forward, params, x, draws=2, generator=torch.Generator().manual_seed(3))
    for name, value in slow_fisher(module, x, drawn).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)
    exact = diagonal_fisher(forward, params, x)
    many = diagonal_fisher(forward, params, x, draws=1500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many["0.weight"], exact["0.weight"], rtol=0.2, atol=1e-3)


def test_fisher_of_logistic_regression_in_closed_form():
    """p (1 - p) x^2 for the weights of both classes."""
    module, x = nn.Linear(3, 2).double(), torch.randn(50, 3, dtype=torch.float64)
    p = module(x).softmax(-1)[:, :1]
    found = diagonal_fisher(stateless(module), dict(module.named_parameters()), x)
    torch.testing.assert_close(found["weight"], (p * (1 - p) * x.square()).mean(0).expand(2, 3).detach())


def test_embedding_is_the_mean_of_each_filter():
    fisher = {"a": torch.arange(12.0).view(2, 3, 2, 1), "bias": torch.ones(2), "b": torch.tensor([[2.0, 4.0]])}
    assert task2vec(fisher).tolist() == [2.5, 8.5, 3.0]


def test_distance_of_tasks():
    a, b = torch.rand(2, 30, dtype=torch.float64)
    distance = task2vec_distance(a, b)
    u, v = a / (a + b), b / (a + b)
    torch.testing.assert_close(distance, 1 - (u @ v) / (u.norm() * v.norm()))
    torch.testing.assert_close(distance, task2vec_distance(b, a))
    assert float(task2vec_distance(a, a)) == pytest.approx(0, abs=1e-12)
    scale = torch.logspace(-3, 3, 30, dtype=torch.float64)
    torch.testing.assert_close(task2vec_distance(a * scale, b * scale), distance)  # no filter outweighs the others
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(task2vec_distance(torch.cat([a, zero]), torch.cat([b, zero])), distance)


def test_wrong_arguments():
    module = network()
    params, forward = dict(module.named_parameters()), stateless(module)
    for call, words in [
        (lambda: diagonal_fisher(forward, params, torch.zeros(0, 5).double()), "0 samples"),
        (lambda: diagonal_fisher(forward, params, torch.zeros(1, 5).double(), draws=0), "draws=0"),
        (lambda: task2vec({"bias": torch.ones(3)}), "two or more axes"),
        (lambda: task2vec_distance(torch.ones(3), torch.ones(4)), "(4,)"),
        (lambda: task2vec_distance(torch.zeros(3), torch.ones(3)), "zeros"),
        (lambda: task2vec_distance(-torch.ones(3), torch.ones(3)), "non-negative"),
    ]:
        with pytest.raises(UserError) as caught:
            call()
        assert words in keep(str(caught.value))
