"""The in-context learner: its start at class means, its views, frozen backbones."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import Conv4, Episode, InContextModule, ProtoNetModule, TokenAverage, Tokens, UserError


def trained(**arguments):
    """A module whose last layer is not 0."""
    torch.manual_seed(0)
    module = InContextModule(Conv4(hidden_channels=4), width=16, **arguments)
    torch.nn.init.normal_(module.readout.weight)
    return module


def test_it_starts_at_cosine_class_means():
    module = InContextModule(Conv4(hidden_channels=4), width=16, scale=7.0).eval()
    means = ProtoNetModule(module.backbone, distance="cosine", scale=7.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(episode()), means(episode()))
        assert not torch.equal(trained().eval()(episode()), means(episode()))


def test_logits_against_one_sequence_for_each_class_and_query():
    module = trained().double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        logits = module(batch)
        for task in range(2):
            support, queries = module.backbone(batch.support_x[task]), module.backbone(batch.query_x[task])
            for way in range(3):
                own = batch.support_y[task] == way
                codes = torch.stack([module.codes.weight[int(one)] for one in own])
                seen = module.reader.read(module.project(support) + codes)
                prototype = support[own].mean(0)
                for index, query in enumerate(queries):
                    answer = module.reader.answer(seen, module.project(query).unsqueeze(0))[0]
                    expected = module.readout(answer)[0] + 10 * torch.cosine_similarity(query, prototype, 0)
                    torch.testing.assert_close(logits[task, index, way], expected, rtol=1e-9, atol=1e-9)


def test_a_frozen_backbone_stays_as_it_is():
    module = trained(freeze_backbone=True).train()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    assert not module.backbone.training
    assert module.reader.training
    optimizer = module.configure_optimizers()
    module.training_loss(episode())[0].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())
    assert all(value.grad is None for value in module.backbone.parameters())
    assert module.codes.weight.grad.abs().max() > 0


@pytest.mark.parametrize("labels", [[0] * 3, [0, 1, 1, 2, 2, 2], list(range(9))])
def test_any_ways_and_uneven_shots(labels):
    module = trained().eval()
    batch = Episode(
        torch.rand(2, len(labels), 1, 28, 28), torch.tensor([labels] * 2), torch.rand(2, 4, 1, 28, 28), None
    )
    assert module(batch).isfinite().all()
    assert module(batch).shape == (2, 4, max(labels) + 1)


def test_texts():
    module = InContextModule(TokenAverage(20, 8), width=16)
    texts = Tokens(torch.randint(1, 20, (2, 3, 6)), torch.ones(2, 3, 6, dtype=torch.long))
    assert module(Episode(texts, torch.tensor([[0, 1, 0]] * 2), texts, None)).shape == (2, 3, 2)


def test_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trained().eval()(episode())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, trained().eval()(episode()), rtol=0.1, atol=0.5)


def test_wrong_arguments():
    with pytest.raises(UserError, match="scale must be a number above 0"):
        InContextModule(Conv4(), scale=0)
    with pytest.raises(UserError, match="divisible by heads"):
        InContextModule(Conv4(), width=30)
