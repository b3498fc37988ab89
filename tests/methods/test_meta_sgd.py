"""Meta-SGD: a learned rate for every weight, its gradient against an explicit loop and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, Conv4, MAMLModule, MetaSGDModule, UserError
from metatransfer.methods.options import Execution, InnerLoop


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
def test_weights_and_rates_get_the_gradients_of_the_explicit_loop(batching, first_order):
    module = MetaSGDModule(
        Conv4(hidden_channels=4),
        num_outputs=3,
        inner=InnerLoop(steps=2, lr=0.01, first_order=first_order),
        execution=Execution(batching=batching),
    )
    module, batch = module.double().train(), double(episode())
    with torch.no_grad():
        for value in module.rates.parameters():
            value.uniform_(-0.01, 0.1)
    losses = []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = dict(module.network.named_parameters())
        for _ in range(2):
            loss = F.cross_entropy(functional_call(module.network, params, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            rates = module.rates()
            params = {
                name: value - rates[name] * gradient
                for (name, value), gradient in zip(params.items(), gradients, strict=True)
            }
        losses.append(F.cross_entropy(functional_call(module.network, params, (query_x,)), query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(module.parameters()))
    module.training_loss(batch)[0].backward()
    for value, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


def test_the_gradient_of_a_rate_is_the_finite_difference():
    module, batch = MetaSGDModule(MLP((1,), (8, 8)), num_outputs=1).double().train(), double(sinusoids(3, 5, 0))
    module.training_loss(batch)[0].backward()
    for rates in module.rates.parameters():
        place, width = (0,) * rates.dim(), 1e-5
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                rates[place] += sign * width
                found.append(module.training_loss(batch)[0].item())
                rates[place] -= sign * width
        assert rates.grad[place].item() == pytest.approx((found[0] - found[1]) / (2 * width), rel=1e-5, abs=1e-8)


def test_it_starts_as_maml():
    ours = MetaSGDModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=2, lr=0.1)).double().eval()
    theirs = MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=2, lr=0.1)).double().eval()
    theirs.load_state_dict({n: value for n, value in ours.state_dict().items() if not n.startswith("rates.")})
    ours.rates.reset_parameters()  # 0.1 in float64: it was made in float32
    batch = double(episode())
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-10, atol=1e-12)


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"inner\.lr must be"):
        MetaSGDModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=1, lr=0.0))
    with pytest.raises(UserError, match="MetaSGDModule needs num_outputs"):
        MetaSGDModule(Conv4(hidden_channels=4))


def test_every_weight_has_a_rate_of_its_own():
    module = MetaSGDModule(Conv4(hidden_channels=4), num_outputs=3)
    shapes = {name: value.shape for name, value in module.network.named_parameters()}
    assert {name: value.shape for name, value in module.rates().items()} == shapes
