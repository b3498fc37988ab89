"""Transformer neural processes: a regression against one sequence for each query, contracts, classification."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import Conv4, Episode, RawFeatures, TNPDModule, UserError


def regression():
    torch.manual_seed(0)
    x, y = torch.randn(2, 9, 3).double(), torch.randn(2, 9, 2).double()
    module = TNPDModule(RawFeatures((3,)), num_targets=2, width=8, layers=2, heads=2).double().eval()
    return module, Episode(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])


def test_regression_against_one_sequence_for_each_query():
    module, batch = regression()
    with torch.no_grad():
        found = module(batch)
        for task in range(2):
            seen = module.reader.read(module.embedder(torch.cat([batch.support_x[task], batch.support_y[task]], -1)))
            for index, query in enumerate(batch.query_x[task]):
                token = module.embedder(torch.cat([query, torch.zeros(2).double()]))
                outputs = module.readout(module.reader.answer(seen, token.unsqueeze(0)))[0]
                torch.testing.assert_close(found.mean[task, index], outputs[:2], rtol=1e-9, atol=1e-9)
                expected = 1e-3 + (1 - 1e-3) * (1 + outputs[2:].exp()).log()
                torch.testing.assert_close(found.stddev[task, index], expected, rtol=1e-9, atol=1e-9)


def test_a_regression_keeps_the_contract():
    """As of the methods for classes: order of the support set, other queries, other tasks."""
    module, batch = regression()
    order = torch.randperm(5)
    changes = {
        "order": batch._replace(support_x=batch.support_x[:, order], support_y=batch.support_y[:, order]),
        "query": batch._replace(query_x=torch.cat([batch.query_x[:, :1], torch.randn(2, 3, 3).double()], 1)),
        "tasks": batch.map(lambda t: t[:1]),
    }
    with torch.no_grad():
        own = module(batch)
        for other in map(module, changes.values()):
            for name in ("mean", "stddev"):
                expected = getattr(own, name)[: len(other.mean), :1]
                torch.testing.assert_close(getattr(other, name)[:, :1], expected, rtol=1e-9, atol=1e-9)


def test_classes_are_functions_to_learn():
    module = TNPDModule(Conv4(hidden_channels=4), width=8, layers=1, heads=2).double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        logits = module(batch)
        for way in range(3):
            seen = torch.cat([module.embed(batch.support_x), (batch.support_y == way).double().unsqueeze(-1)], -1)
            queries = module.embed(batch.query_x)
            asked = torch.cat([queries, torch.zeros(2, 12, 1).double()], -1)
            expected = module.readout(
                module.reader.answer(module.reader.read(module.embedder(seen)), module.embedder(asked))
            )
            torch.testing.assert_close(logits[..., way], expected[..., 0], rtol=1e-9, atol=1e-9)


def test_it_learns_constant_functions():
    """The mean of the support set is the answer, and its uncertainty is small."""
    torch.manual_seed(0)
    module = TNPDModule(RawFeatures((1,)), num_targets=1, width=16, layers=1, heads=2)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(150):
        value = torch.randn(32, 1, 1).expand(-1, 10, -1)
        x = torch.rand(32, 10, 1)
        loss, _ = module.training_loss(Episode(x[:, :4], value[:, :4], x[:, 4:], value[:, 4:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3  # 1.42 for the entropy of the values


def test_wrong_arguments():
    with pytest.raises(UserError, match="divisible by heads"):
        TNPDModule(RawFeatures((1,)), width=30)
