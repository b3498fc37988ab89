"""First-order MAML: the gradient of the adapted parameters, whatever is asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double
from torch.func import functional_call

from contract import episode
from inner_options import grouped
from metatransfer import Conv4, FOMAMLModule, MAMLModule
from metatransfer.methods.options import Execution, InnerLoop


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_gradient_is_that_of_the_adapted_parameters(batching):
    module = FOMAMLModule(
        Conv4(hidden_channels=4),
        num_outputs=3,
        inner=InnerLoop(steps=3, lr=0.1),
        execution=Execution(batching=batching),
    )
    module, batch = module.double().train(), double(episode())
    names = dict(module.network.named_parameters())
    expected = [torch.zeros_like(value) for value in names.values()]
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = {name: value.detach().clone().requires_grad_() for name, value in names.items()}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module.network, params, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(params.values()))
            params = {
                name: (value - 0.1 * gradient).detach().requires_grad_()
                for (name, value), gradient in zip(params.items(), gradients, strict=True)
            }
        loss = F.cross_entropy(functional_call(module.network, params, (query_x,)), query_y)
        for total, gradient in zip(expected, torch.autograd.grad(loss, list(params.values())), strict=True):
            total += gradient / 2
    module.training_loss(batch)[0].backward()
    for value, gradient in zip(names.values(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


def test_it_is_maml_with_first_order():
    found = []
    for kind, options in ((FOMAMLModule, {}), (MAMLModule, {"first_order": True})):
        torch.manual_seed(0)
        module = kind(Conv4(hidden_channels=4), num_outputs=3, **grouped(kind, **options)).double().train()
        module.training_loss(double(episode()))[0].backward()
        found.append([value.grad for value in module.parameters()])
        assert module.protocol()["first_order"] is True
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
