"""Conditional neural processes: loops over points and classes, regression, wrong arguments."""

from __future__ import annotations

import pytest
import torch

from contract import episode
from metatransfer import CNPModule, Conv4, Episode, RawFeatures, UserError


def doubled(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def functions(shots=5, queries=4):
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, shots + queries, size, generator=draw).double() for size in (3, 2))
    return Episode(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def test_regression_against_a_loop():
    module, batch = CNPModule(RawFeatures((3,)), num_targets=2, hidden=8).double().eval(), functions()
    with torch.no_grad():
        found = module(batch)
        for task in range(2):
            points = zip(batch.support_x[task], batch.support_y[task], strict=True)
            mean = sum(module.encoder(torch.cat(point)) for point in points) / 5
            for index, query in enumerate(batch.query_x[task]):
                outputs = module.decoder(torch.cat([mean, query]))
                torch.testing.assert_close(found.mean[task, index], outputs[:2], rtol=1e-9, atol=1e-9)
                expected = 0.1 + 0.9 * (1 + outputs[2:].exp()).log()
                torch.testing.assert_close(found.stddev[task, index], expected, rtol=1e-9, atol=1e-9)
        likelihood = torch.distributions.Normal(found.mean, found.stddev).log_prob(batch.query_y).mean()
        torch.testing.assert_close(module.training_loss(batch)[0], -likelihood)


def test_classification_against_a_loop():
    module, batch = CNPModule(Conv4(hidden_channels=4), hidden=8).double().eval(), doubled(episode())
    with torch.no_grad():
        logits = module(batch)
        for task in range(2):
            support, queries = (module.encoder(module.backbone(x[task])) for x in (batch.support_x, batch.query_x))
            for way in range(3):
                mean = support[batch.support_y[task] == way].mean(0)
                for index, query in enumerate(queries):
                    expected = module.decoder(torch.cat([mean, query, (query - mean).abs()]))[0]
                    torch.testing.assert_close(logits[task, index, way], expected, rtol=1e-9, atol=1e-9)


def test_it_regresses_on_request():
    module = CNPModule(RawFeatures((3,)), num_targets=2)
    predictor = module.adapt(torch.randn(6, 3), torch.randn(6, 2))
    assert predictor.predict(torch.randn(4, 3)).shape == (4, 2)
    assert predictor.outputs(torch.randn(4, 3)).stddev.min() >= 0.1


def test_wrong_arguments():
    with pytest.raises(UserError, match="num_targets"):
        CNPModule(RawFeatures((3,)), num_targets=0)
    with pytest.raises(UserError, match=r"learns classes, but .* has float targets"):
        CNPModule(RawFeatures((3,))).training_step(functions(), 0)
