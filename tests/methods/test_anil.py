"""ANIL: the head adapts, the features are computed once and trained by the outer loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, ANILModule, Conv4, MAMLModule, UserError
from metatransfer.functional import stateless
from metatransfer.methods.options import Execution, InnerLoop


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("batch_norm", ["transductive", "support"])
def test_the_gradient_is_that_of_an_explicit_loop_over_the_whole_network(batching, batch_norm):
    module = ANILModule(
        Conv4(hidden_channels=4),
        num_outputs=3,
        inner=InnerLoop(steps=3, lr=0.4),
        execution=Execution(batching=batching),
        batch_norm=batch_norm,
    )
    module, batch = module.double().train(), double(episode())
    everything, losses = dict(module.network.named_parameters()), []
    forward = stateless(module.network)
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        head = {name: value for name, value in everything.items() if name.startswith("head")}
        for _ in range(3):
            loss = F.cross_entropy(functional_call(module.network, head, (support_x,)), support_y)
            gradients = torch.autograd.grad(loss, list(head.values()), create_graph=True)
            head = {n: value - 0.4 * g for (n, value), g in zip(head.items(), gradients, strict=True)}
        if batch_norm == "support":
            outputs = forward(head, torch.cat([support_x, query_x]), len(support_x))[len(support_x) :]
        else:
            outputs = functional_call(module.network, head, (query_x,))
        losses.append(F.cross_entropy(outputs, query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(everything.values()))
    loss, _ = module.training_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean().detach(), rtol=1e-10, atol=1e-12)
    for value, gradient in zip(everything.values(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("batch_norm", ["transductive", "support", "running"])
def test_it_is_maml_with_a_frozen_body_in_evaluation(batch_norm):
    torch.manual_seed(0)
    ours = (
        ANILModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=2, lr=0.4), batch_norm=batch_norm)
        .double()
        .eval()
    )
    theirs = (
        MAMLModule(Conv4(hidden_channels=4), num_outputs=3, inner=InnerLoop(steps=2, lr=0.4), batch_norm=batch_norm)
        .double()
        .eval()
    )
    theirs.load_state_dict(ours.state_dict())
    for value in theirs.backbone.parameters():
        value.requires_grad_(False)
    batch = double(episode())
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=1e-9, atol=1e-11)


def test_the_features_are_computed_once_for_support_and_queries():
    module, passes = (
        ANILModule(
            Conv4(hidden_channels=4),
            num_outputs=3,
            inner=InnerLoop(steps=5, lr=0.4),
            execution=Execution(batching="loop"),
        ),
        [],
    )
    module.backbone.layers[0].register_forward_hook(lambda *_: passes.append(1))
    module.train().training_loss(episode(tasks=2))[0].backward()
    assert len(passes) == 2 * 2  # of two tasks, whatever the number of steps


def test_only_the_head_adapts():
    module, batch = ANILModule(MLP((1,), (8,)), num_outputs=1, inner=InnerLoop(steps=1, lr=0.01)), sinusoids(3, 5, 0)
    assert set(module.fit_tasks(batch.support_x, batch.support_y).params) == {"head.linear.weight", "head.linear.bias"}
    loss, outputs = module.train().training_loss(batch)
    loss.backward()
    assert outputs.shape == batch.query_y.shape
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


def test_a_frozen_head_leaves_nothing_to_adapt():
    module, batch = ANILModule(Conv4(hidden_channels=4), num_outputs=3), episode()
    for value in module.head.parameters():
        value.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter to adapt"):
        module.fit_tasks(batch.support_x, batch.support_y)
