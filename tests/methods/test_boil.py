"""BOIL: the head stays, the body moves, the outer loop trains both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, BOILModule, Conv4, Episode, UserError
from metatransfer.methods.options import Execution, InnerLoop


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_gradient_is_that_of_an_explicit_loop_over_the_body(batching):
    module = BOILModule(
        Conv4(hidden_channels=4),
        num_outputs=3,
        inner=InnerLoop(steps=2, lr=0.1),
        execution=Execution(batching=batching),
    )
    module, batch = module.double().train(), double(episode())
    everything, losses = dict(module.network.named_parameters()), []
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        body = {name: value for name, value in everything.items() if name.startswith("backbone")}
        for _ in range(2):
            loss = F.cross_entropy(functional_call(module.network, body, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(body.values()), create_graph=True)
            body = {n: value - 0.1 * g for (n, value), g in zip(body.items(), gradients, strict=True)}
        losses.append(F.cross_entropy(functional_call(module.network, body, (query_x,)), query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(everything.values()))
    module.training_loss(batch)[0].backward()
    for value, gradient in zip(everything.values(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


def test_the_head_does_not_adapt():
    module, batch = BOILModule(MLP((1,), (8,)), num_outputs=1, inner=InnerLoop(steps=1, lr=0.01)), sinusoids(3, 5, 0)
    adapted = module.fit_tasks(batch.support_x, batch.support_y).params
    assert set(adapted) == {f"backbone.{name}" for name, _ in module.backbone.named_parameters()}
    assert module.train().training_loss(Episode(*batch))[0].isfinite()


def test_a_frozen_body_leaves_nothing_to_adapt():
    module, batch = BOILModule(Conv4(hidden_channels=4), num_outputs=3), episode()
    for value in module.backbone.parameters():
        value.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter to adapt"):
        module.fit_tasks(batch.support_x, batch.support_y)


def test_the_untrained_twin_of_an_evaluation_adapts():
    """Weights that were made under inference_mode take part in no gradient: those of the head stay as they are."""
    module, batch = BOILModule(Conv4(hidden_channels=4), num_outputs=3).eval(), episode()
    with torch.inference_mode():
        assert module.untrained_twin()(batch).isfinite().all()
