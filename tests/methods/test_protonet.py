"""Prototypical networks: against loops, distances, ways."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import Conv4, Episode, ProtoNetModule, UserError


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_logits_against_a_double_loop(distance):
    module = ProtoNetModule(Conv4(hidden_channels=4), distance=distance, scale=7.0).double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        logits = module(batch)
        for task in range(2):
            support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
            for way in range(3):
                prototype = support[batch.support_y[task] == way].mean(0)
                for index, query in enumerate(queries):
                    if distance == "euclidean":
                        expected = -((query - prototype) ** 2).sum()
                    else:
                        expected = 7 * query @ prototype / (query.norm() * prototype.norm())
                    torch.testing.assert_close(logits[task, index, way], expected, rtol=1e-9, atol=1e-9)


def test_training_way_may_differ_from_test_way():
    module = ProtoNetModule(Conv4(hidden_channels=4))
    x, y = torch.rand(1, 8, 1, 28, 28), torch.arange(8).unsqueeze(0)
    assert module(Episode(x, y, x, y)).shape == (1, 8, 8)
    assert module(Episode(x[:, :2], y[:, :2], x, y)).shape == (1, 8, 2)


def test_the_scale_is_learned_and_reset():
    module = ProtoNetModule(Conv4(hidden_channels=4), distance="cosine", scale=3.0)
    module.training_loss(episode())[0].backward()
    assert module.scale.grad.abs() > 0
    with torch.no_grad():
        module.scale.fill_(9)
    assert module.untrained_twin().scale.item() == 3.0


def test_half_precision_embeddings_do_not_overflow_the_distance():
    module = ProtoNetModule(Conv4(hidden_channels=4))
    far = torch.full((1, 2, 4), 300.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = module.predict_embeddings(-far, far)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.full((1, 2, 2), -4 * 600.0**2))


def test_wrong_arguments():
    with pytest.raises(UserError, match="distance must be one of euclidean, cosine"):
        ProtoNetModule(Conv4(), distance="euclid")
    with pytest.raises(UserError, match="scale must be a number above 0"):
        ProtoNetModule(Conv4(), scale=-1)


def test_in_training_one_pass_embeds_both_sets_and_the_gradient_reaches_the_prototypes():
    module = ProtoNetModule(Conv4(hidden_channels=4)).double().train()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    shots = batch.support_y.shape[1]
    together = torch.cat([batch.support_x, batch.query_x], 1)  # BatchNorm sees all tasks and both sets at once
    embedded = module.backbone(together.flatten(0, 1)).unflatten(0, together.shape[:2])
    losses = []
    for own, labels, targets in zip(embedded, batch.support_y, batch.query_y, strict=True):
        prototypes = torch.stack([own[:shots][labels == way].mean(0) for way in range(3)])
        scores = -(own[shots:].unsqueeze(1) - prototypes).square().sum(-1)
        losses.append(torch.nn.functional.cross_entropy(scores, targets))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(module.parameters()))
    module.training_loss(batch)[0].backward()
    for value, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-11)
