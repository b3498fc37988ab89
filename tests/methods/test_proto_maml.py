"""Proto-MAML: a head made of prototypes, its gradient through prototypes and inner steps against an explicit loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import double, sinusoids
from torch.func import functional_call

from contract import episode
from metatransfer import MLP, Conv4, ProtoMAMLModule, ProtoNetModule, UserError
from metatransfer.functional import stateless
from metatransfer.methods.options import Execution, InnerLoop


def explicit_loss(module, batch, steps, rate, first_order, by_support):
    losses, forward = [], stateless(module.backbone)
    for support_x, support_y, query_x, query_y in zip(*batch[:4], strict=True):
        params = dict(module.backbone.named_parameters())
        features = functional_call(module.backbone, params, (support_x,))
        ways = int(support_y.max()) + 1
        centers = torch.stack([features[support_y == way].mean(0) for way in range(ways)])
        # the partial derivatives: a step knows nothing of where the head came from
        params = {name: value.view_as(value) for name, value in params.items()}
        params |= {"weight": 2 * centers, "bias": -(centers**2).sum(1)}

        def outputs(x, params=params, rows=None):
            body = {name: value for name, value in params.items() if name not in ("weight", "bias")}
            return forward(body, x, rows) @ params["weight"].T + params["bias"]

        for _ in range(steps):
            loss = F.cross_entropy(outputs(support_x, params), support_y)
            point = list(params.values())
            gradients = torch.autograd.grad(loss, point, create_graph=not first_order, retain_graph=True)
            params = {n: value - rate * g for (n, value), g in zip(params.items(), gradients, strict=True)}
        if by_support:
            shots = len(support_x)
            answers = outputs(torch.cat([support_x, query_x]), params, shots)[shots:]
        else:
            answers = outputs(query_x, params)
        losses.append(F.cross_entropy(answers, query_y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("first_order", "batch_norm"), [(False, "transductive"), (True, "transductive"), (False, "support")]
)
def test_the_gradient_is_that_of_an_explicit_loop(batching, first_order, batch_norm):
    module = ProtoMAMLModule(
        Conv4(hidden_channels=4), inner=InnerLoop(steps=2, lr=0.05, first_order=first_order), 
        execution=Execution(batching=batching),
        batch_norm=batch_norm,
    )  # fmt: skip
    module, batch = module.double().train(), double(episode())
    expected = explicit_loss(module, batch, 2, 0.05, first_order, batch_norm == "support")
    gradients = torch.autograd.grad(expected, list(module.parameters()))
    loss, _ = module.training_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
    for value, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)


def test_without_a_step_it_is_a_prototypical_network():
    ours = ProtoMAMLModule(Conv4(hidden_channels=4, norm="group"), inner=InnerLoop(steps=0, lr=0.1)).double().eval()
    theirs = ProtoNetModule(Conv4(hidden_channels=4, norm="group")).double().eval()
    theirs.load_state_dict(ours.state_dict())
    batch = double(episode())
    torch.testing.assert_close(ours(batch).softmax(-1), theirs(batch).softmax(-1), rtol=1e-9, atol=1e-12)


def test_any_number_of_ways_and_an_absent_class_is_never_the_answer():
    module, batch = (
        ProtoMAMLModule(Conv4(hidden_channels=4), inner=InnerLoop(steps=2, lr=0.1)).double().eval(),
        double(episode()),
    )
    keep = batch.support_y[0] != 1
    fewer = batch._replace(support_x=batch.support_x[:, keep], support_y=batch.support_y[:, keep])
    outputs = module(fewer)
    assert outputs.shape[-1] == 3
    assert not (outputs.argmax(-1) == 1).any()
    # the class that is not there moves nothing of the others
    renamed = fewer._replace(support_y=fewer.support_y.clamp(max=1))
    torch.testing.assert_close(module(renamed)[..., :2], outputs[..., [0, 2]], rtol=1e-9, atol=1e-9)


def test_the_head_adapts_too():
    module, batch = ProtoMAMLModule(Conv4(hidden_channels=4), inner=InnerLoop(steps=1, lr=0.1)).eval(), episode()
    before, after = module.adapt_through(batch.support_x, batch.support_y, trajectory=True)
    assert {"head.weight", "head.bias", "backbone.layers.0.weight"} <= set(after.params)
    assert not torch.equal(before.params["head.weight"], after.params["head.weight"])


def test_no_regression():
    module = ProtoMAMLModule(MLP((1,), (8,)))
    with pytest.raises(UserError, match="ProtoMAMLModule learns classes"):
        module.validation_step(sinusoids(2, 5, 0), 0)
