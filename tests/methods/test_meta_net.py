"""Meta networks: against a loop over samples in float64, with gradients of autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from contract import episode
from metatransfer import Conv4, Episode, MetaNetModule, UserError


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def test_logits_against_a_loop_over_queries_and_support_samples():
    module, batch = MetaNetModule(Conv4(hidden_channels=4), 6, 5, scale=3.0).double().eval(), double(episode())
    found = module(batch).detach()
    for task in range(2):
        support, labels = module.backbone(batch.support_x[task]).detach(), batch.support_y[task]
        slow = module.slow.weight.detach().clone().requires_grad_()
        hidden = F.relu(support @ slow.T)
        means = torch.stack([hidden[labels == way].mean(0) for way in range(3)])
        scores = torch.stack([-(one - means).square().sum(-1) for one in hidden])
        [gradient] = torch.autograd.grad(F.cross_entropy(scores, labels), slow)
        fast = module.representation_learner(gradient)

        def represented(x, slow=slow, fast=fast):
            return F.relu(slow @ x) + F.relu(fast @ x)

        values = []
        for one, label in zip(support, labels, strict=True):
            weights = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
            loss = F.cross_entropy((weights @ one).unsqueeze(0), label.unsqueeze(0))
            values.append(module.output_learner(torch.autograd.grad(loss, weights)[0]))
        for place, query in enumerate(module.backbone(batch.query_x[task])):
            near = [F.cosine_similarity(represented(query), represented(one), dim=0) for one in support]
            attention = (3 * torch.stack(near)).softmax(0)
            read = sum(weight * value for weight, value in zip(attention, values, strict=True))
            torch.testing.assert_close(found[task, place], (read @ query).detach(), rtol=1e-8, atol=1e-10)


def test_training_way_may_differ_from_test_way_and_one_class_is_certain():
    module = MetaNetModule(Conv4(hidden_channels=4))
    x, y = torch.rand(1, 8, 1, 28, 28), torch.arange(8).unsqueeze(0)
    assert module(Episode(x, y, x, y)).shape == (1, 8, 8)
    assert module(Episode(x[:, :2], 0 * y[:, :2], x, 0 * y)).shape == (1, 8, 1)


def test_the_slow_weights_learn_through_the_representation():
    module = MetaNetModule(Conv4(hidden_channels=4))
    module.training_loss(episode())[0].backward()
    assert all(value.grad.abs().max() > 0 for value in module.parameters())


def test_half_precision_runs_in_single():
    module, batch = MetaNetModule(Conv4(hidden_channels=4)).eval(), episode()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert module(batch).dtype == torch.float32


def test_wrong_arguments():
    with pytest.raises(UserError, match="hidden_size must be a whole number"):
        MetaNetModule(Conv4(), hidden_size=0)
    with pytest.raises(UserError, match="scale must be a number above 0"):
        MetaNetModule(Conv4(), scale=0.0)
