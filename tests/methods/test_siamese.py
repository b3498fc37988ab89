"""Siamese networks: pairs against loops, balance, verification."""

import pytest
import torch
import torch.nn.functional as F

from contract import episode
from metatransfer import Conv4, Episode, SiameseModule, UserError


def doubles(**arguments):
    return episode(**arguments).map(lambda t: t.double() if t.is_floating_point() else t)


def pair_logit(module, a, b):
    return (module.weight * (a - b).abs()).sum() + module.bias


@pytest.mark.parametrize("hidden_size", [None, 7])
def test_a_class_has_the_logit_of_its_most_similar_sample(hidden_size):
    module, batch = SiameseModule(Conv4(hidden_channels=4), hidden_size).double().eval(), doubles()
    with torch.no_grad():
        outputs = module(batch)
        for task in range(2):
            support, queries = (module.hidden(module.backbone(x[task])) for x in (batch.support_x, batch.query_x))
            for query, found in zip(queries, outputs[task], strict=True):
                for way in range(3):
                    own = support[batch.support_y[task] == way]
                    expected = torch.stack([pair_logit(module, query, one) for one in own]).max()
                    torch.testing.assert_close(found[way], expected, rtol=1e-9, atol=1e-12)


def test_the_loss_is_balanced_over_all_pairs():
    module, batch = SiameseModule(Conv4(hidden_channels=4), None).double().train(), doubles()
    x, y = torch.cat([batch.support_x, batch.query_x], 1), torch.cat([batch.support_y, batch.query_y], 1)
    with torch.no_grad():
        embedded = module.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        losses = []
        for own, labels in zip(embedded, y, strict=True):
            by_kind = {True: [], False: []}
            for i in range(len(own)):
                for j in range(i):
                    same = bool(labels[i] == labels[j])
                    logit = pair_logit(module, own[i], own[j])
                    by_kind[same].append(F.softplus(-logit if same else logit))
            losses.append((torch.stack(by_kind[True]).mean() + torch.stack(by_kind[False]).mean()) / 2)
        torch.testing.assert_close(module.training_loss(batch)[0], torch.stack(losses).mean())


def test_verification_is_the_probability_of_the_same_class():
    module, batch = SiameseModule(Conv4(hidden_channels=4), None).double(), doubles()
    found = module.verify(batch.support_x[0], batch.query_x[0, :6])
    assert module.training
    module.eval()
    with torch.no_grad():
        pairs = zip(module.backbone(batch.support_x[0]), module.backbone(batch.query_x[0, :6]), strict=True)
        expected = torch.stack([pair_logit(module, a, b).sigmoid() for a, b in pairs])
        torch.testing.assert_close(module.support_scores(batch).values[0, :6].diagonal(), expected)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="x1 has 6 samples and x2 has 2"):
        module.verify(batch.support_x[0], batch.query_x[0, :2])
    with pytest.raises(UserError, match=r"but the data has \(1, 9, 9\)"):
        module.verify(torch.rand(1, 1, 9, 9), torch.rand(1, 1, 9, 9))


@pytest.mark.parametrize("hidden_size", [None, 64, 256])
def test_training_starts_with_undecided_pairs(hidden_size):
    """Or the first hundreds of steps would only move the bias."""
    torch.manual_seed(0)
    module = SiameseModule(Conv4(hidden_channels=32), hidden_size)
    features = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).relu()
    with torch.no_grad():
        embedded = module.hidden(features)
        logits = module.pair_logits(embedded.unsqueeze(1), embedded.unsqueeze(0))
        assert logits[~torch.eye(40).bool()].mean().abs() < 1
        assert (logits.diagonal() > 1).all()
        if hidden_size is not None:  # features of any scale
            torch.testing.assert_close(module.hidden(100 * features), embedded, rtol=1e-3, atol=1e-4)


def test_a_task_of_one_class_has_no_pairs_of_different_classes():
    module, x, y = (
        SiameseModule(Conv4(hidden_channels=4)).train(),
        torch.rand(1, 3, 1, 28, 28),
        torch.zeros(1, 3).long(),
    )
    loss, outputs = module.training_loss(Episode(x, y, x, y))
    loss.backward()
    assert loss.isfinite()
    assert outputs.shape == (1, 3, 1)


def test_wrong_arguments():
    with pytest.raises(UserError, match="hidden_size must be a number above 0"):
        SiameseModule(Conv4(), hidden_size=0)
