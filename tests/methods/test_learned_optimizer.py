"""The learned inner optimiser: gradients of weights, rates and momenta against an explicit loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, Conv4, LearnedOptimizerModule, MAMLModule, UserError
from metatransfer.methods.options import Execution, InnerLoop


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
def test_weights_rates_and_momenta_get_the_gradients_of_the_explicit_loop(batching, first_order):
    module = LearnedOptimizerModule(
        Conv4(hidden_channels=4),
        3,
        inner=InnerLoop(steps=3, lr=0.1, first_order=first_order),
        execution=Execution(batching=batching),
    )
    module, batch = module.double().train(), double(episode())
    with torch.no_grad():
        for value in (*module.log_rates.parameters(), *module.logit_momenta.parameters()):
            value.add_(torch.randn_like(value) * 0.3)
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = dict(module.network.named_parameters())
        velocity = {name: torch.zeros_like(value) for name, value in params.items()}
        rates = {name: torch.exp(value) for name, value in module.log_rates().items()}
        momenta = {name: 1 / (1 + torch.exp(-value)) for name, value in module.logit_momenta().items()}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module.network, params, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            for (name, value), gradient in zip(list(params.items()), gradients, strict=True):
                velocity[name] = momenta[name] * velocity[name] + gradient
                params[name] = value - rates[name] * velocity[name]
        losses.append(F.cross_entropy(functional_call(module.network, params, (query_x,)), query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(module.parameters()))
    module.training_loss(batch)[0].backward()
    for value, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


def test_one_step_is_mamls():
    ours = LearnedOptimizerModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=1, lr=0.1)).double().eval()
    theirs = MAMLModule(Conv4(hidden_channels=4), 3, inner=InnerLoop(steps=1, lr=0.1)).double().eval()
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if n.startswith(("backbone", "head"))})
    ours.log_rates.reset_parameters()  # log 0.1 in float64: it was made in float32
    torch.testing.assert_close(ours(double(episode())), theirs(double(episode())), rtol=1e-9, atol=1e-12)


def test_regression_learns_rates_and_momenta_too():
    module, batch = LearnedOptimizerModule(MLP((1,), (8,)), 1, inner=InnerLoop(steps=3, lr=0.01)), sinusoids(3, 5, 0)
    module.train().training_loss(batch)[0].backward()
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


@pytest.mark.parametrize("momentum", [0.0, 1.0, -0.1])
def test_wrong_arguments(momentum):
    with pytest.raises(UserError, match="momentum must be above 0 and below 1"):
        LearnedOptimizerModule(Conv4(hidden_channels=4), 3, momentum=momentum)


def test_learning_starts_at_the_given_rate_and_momentum():
    module = LearnedOptimizerModule(MLP((4,), (8,)), 3, inner=InnerLoop(steps=4, lr=0.2), momentum=0.8).eval()
    x, y = torch.randn(1, 6, 4), (torch.arange(6) % 3).unsqueeze(0)
    expected = {name: value.detach().clone().requires_grad_() for name, value in module.network.named_parameters()}
    optimizer = torch.optim.SGD(expected.values(), lr=0.2, momentum=0.8)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(functional_call(module.network, expected, (x[0],)), y[0]).backward()
        optimizer.step()
    for name, value in module.fit_tasks(x, y).params.items():
        torch.testing.assert_close(value[0].detach(), expected[name].detach(), rtol=1e-4, atol=1e-5)
    assert all(rate.shape == () for rate in module.log_rates().values())
