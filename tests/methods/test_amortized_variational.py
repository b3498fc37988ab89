"""Amortised variational inference: the bound and its inner loop against a written-out loop in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, AmortizedVariationalModule, Conv4, MAMLModule, UserError, Variational
from metatransfer.functional.meta.variational import standard_noise
from metatransfer.methods.options import Execution, InnerLoop

OPTIONS = Variational(initial_std=0.3, samples=2, eval_samples=3, inner_kl_weight=0.05, kl_weight=0.02)


def built(**changes):
    arguments = {"inner": InnerLoop(steps=2, lr=0.1), "variational": OPTIONS} | changes
    return AmortizedVariationalModule(Conv4(hidden_channels=4), 3, **arguments).double()


def bound(module, mean, spread, noise, x, y, weight):
    """Negative evidence lower bound per sample, from torch.distributions, and the outputs of each network."""
    drawn = [
        {name: value + torch.exp(spread[name] / 2) * noise[name][place] for name, value in mean.items()}
        for place in range(len(next(iter(noise.values()))))
    ]
    outputs = [functional_call(module.network, weights, (x,)) for weights in drawn]
    prior = module.log_variances()
    divergence = sum(
        kl_divergence(Normal(mean[name], torch.exp(spread[name] / 2)), Normal(value, torch.exp(prior[name] / 2))).sum()
        for name, value in module.network.named_parameters()
    )
    loss = sum(F.cross_entropy(output, y) for output in outputs) / len(outputs)
    return loss + weight * divergence / len(y), outputs


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_loss_and_all_gradients_are_those_of_a_loop_over_tasks_and_samples(batching):
    module, batch = built(execution=Execution(batching=batching)).train(), double(episode())
    with torch.no_grad():
        for value in module.log_variances.parameters():
            value.add_(0.2 * torch.randn_like(value))
    torch.manual_seed(0)
    loss, outputs = module.training_loss(batch)
    losses, answers = [], []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        mean, spread = dict(module.network.named_parameters()), dict(module.log_variances())
        for step in range(2):
            noise = standard_noise((module._stream, step), 2, spread)
            inner, _ = bound(module, mean, spread, noise, support_x, support_y, 0.05)
            pairs = [*mean.values(), *spread.values()]
            gradients = torch.autograd.grad(inner, pairs, create_graph=True)
            moved = [value - 0.1 * gradient for value, gradient in zip(pairs, gradients, strict=True)]
            mean = dict(zip(mean, moved[: len(mean)], strict=True))
            spread = dict(zip(spread, moved[len(mean) :], strict=True))
        noise = standard_noise((module._stream, 2**31), 2, spread)
        outer, drawn = bound(module, mean, spread, noise, query_x, query_y, 0.02)
        losses.append(outer)
        answers.append(torch.stack([one.softmax(-1) for one in drawn]).mean(0).log())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(outputs.detach(), torch.stack(answers).detach(), rtol=1e-8, atol=1e-10)
    loss.backward()
    for value, gradient in zip(
        module.parameters(), torch.autograd.grad(expected, list(module.parameters())), strict=True
    ):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-7, atol=1e-10)


def test_without_spread_it_is_maml():
    quiet = Variational(initial_std=1e-30, samples=1, eval_samples=1, inner_kl_weight=0.0)
    ours = built(variational=quiet).eval()
    theirs = MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=2, lr=0.1)).double().eval()
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if n.startswith(("backbone", "head"))})
    batch = double(episode())
    torch.testing.assert_close(ours(batch), theirs(batch).log_softmax(-1), rtol=1e-9, atol=1e-9)


def test_evaluation_repeats_itself_and_training_draws_anew():
    module, batch = built(), double(episode())
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(batch), module(batch), rtol=0, atol=0)
        first, second = (module.train().training_loss(batch)[0] for _ in range(2))
    assert first != second


def test_predictions_are_probabilities_and_get_less_certain_with_a_wider_prior():
    batch = double(episode())
    certain, unsure = (
        built(variational=Variational(initial_std=std, eval_samples=20)).eval()(batch).exp().detach()
        for std in (1e-3, 1.0)
    )
    torch.testing.assert_close(unsure.sum(-1), torch.ones(2, 12).double())
    assert unsure.max(-1).values.mean() < certain.max(-1).values.mean()


def test_regression_predicts_the_mean_value():
    module = AmortizedVariationalModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=2, lr=0.01), variational=OPTIONS)
    batch = sinusoids(3, 5, 0)
    state = module.eval().fit_tasks(batch.support_x, batch.support_y)
    drawn, _ = module.sampled_outputs(state, batch.query_x)
    assert drawn.shape[2] == 3
    torch.testing.assert_close(module.predict_tasks(state, batch.query_x), drawn.mean(2))
    module.train().training_loss(batch)[0].backward()
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


def test_the_posterior_moves_away_from_the_prior_and_its_divergence_is_reported_for_each_task():
    module, batch = built().eval(), double(episode())
    with torch.no_grad():
        start = module.sampled_outputs(module.before_learning(batch.support_x), batch.query_x)[1]
        learned = module.sampled_outputs(module.fit_tasks(*batch[:2]), batch.query_x)[1]
    assert torch.equal(start, torch.zeros_like(start))
    assert (learned > 0).all()
    assert (learned[0] == learned[0, 0]).all()
    assert learned[0, 0] != learned[1, 0]


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"variational\.initial_std must be a number above 0"):
        Variational(initial_std=0.0)
    with pytest.raises(UserError, match=r"variational\.eval_samples must be a whole number from 1"):
        Variational(eval_samples=0)
    with pytest.raises(UserError, match=r"variational\.kl_weight must be 0 or more"):
        Variational(kl_weight=-1.0)
    with pytest.raises(UserError, match=r"does not support execution\.compile=True, because its weights are random"):
        built(execution=Execution(compile=True))
