"""FEAT: logits and contrastive loss against loops, temperatures, what may see the query labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from contract import episode
from metatransfer import MLP, Conv4, FEATModule, UserError


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def made(**options):
    torch.manual_seed(0)
    return FEATModule(MLP((1, 28, 28), (6,)), **options).double()


def test_logits_and_loss_against_loops():
    module, batch = made(temperature=3.0, contrast=0.2, contrast_temperature=5.0), double(episode())
    loss, logits = module.training_loss(batch)
    losses, contrasts = [], []
    for task in range(2):
        support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
        prototypes = torch.stack([support[batch.support_y[task] == way].mean(0) for way in range(3)])
        adapted = module.attention(prototypes.unsqueeze(0))[0]
        expected = -(queries.unsqueeze(1) - adapted).square().sum(-1) / 3
        torch.testing.assert_close(logits[task], expected, rtol=1e-9, atol=1e-9)
        losses.append(F.cross_entropy(expected, batch.query_y[task]))
        every, labels = torch.cat([support, queries]), torch.cat([batch.support_y[task], batch.query_y[task]])
        # each class is a set of its own
        centers = torch.stack([module.attention(every[labels == way].unsqueeze(0))[0].mean(0) for way in range(3)])
        scores = -(every.unsqueeze(1) - centers).square().sum(-1) / 5
        contrasts.append(F.cross_entropy(scores, labels))
    expected = torch.stack(losses).mean() + 0.2 * torch.stack(contrasts).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


def test_without_contrast_the_loss_is_that_of_the_queries():
    module, batch = made(contrast=0), double(episode())
    loss, logits = module.training_loss(batch)
    assert torch.equal(loss, module.loss(logits, batch.query_y))
    assert torch.equal(logits, module(batch))


def test_query_labels_change_the_training_loss_but_no_logit():
    module, batch = made(contrast=1.0), double(episode())
    other = batch._replace(query_y=batch.query_y.roll(1, 1))
    (loss, logits), (changed, same) = module.training_loss(batch), module.training_loss(other)
    assert torch.equal(logits, same)
    assert loss != changed


def test_prototypes_adapt_to_the_other_classes():
    module, batch = made(), double(episode())
    elsewhere = batch.support_x.clone()
    elsewhere[:, batch.support_y[0] == 2] += 1
    assert not module(batch)[..., 0].equal(module(batch._replace(support_x=elsewhere))[..., 0])


def test_half_precision_and_one_class_and_uneven_shots():
    module = FEATModule(MLP((3,), (4,)))
    x = torch.rand(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.predict_embeddings(torch.ones(1, 2, 4), torch.ones(1, 1, 4)).dtype == torch.float32
    assert module.adapt(x, ["a"] * 5).predict(x[:1]) == ["a"]
    assert module.adapt(x, list("aaaab")).predict_proba(x).shape == (5, 2)


def test_wrong_arguments():
    for name in ("temperature", "contrast_temperature"):
        with pytest.raises(UserError, match=f"{name} must be a number above 0"):
            FEATModule(Conv4(), **{name: 0.0})
    with pytest.raises(UserError, match="contrast must be 0 or more"):
        FEATModule(Conv4(), contrast=-1.0)
