"""R2D2: against scikit-learn, both forms of the system, half precision, learned numbers."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge

from contract import episode
from metatransfer import MLP, Conv4, R2D2Module, UserError


def double(batch):
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


@pytest.mark.parametrize("shots", [1, 4])  # 3 samples of 5 features, and 12
def test_logits_are_those_of_a_ridge_classifier_on_the_embeddings(shots):
    module = R2D2Module(MLP((1, 28, 28), (5,)), scale=7.0).double().eval()
    with torch.no_grad():
        module.log_penalty.fill_(math.log(0.3))
        module.bias.fill_(0.25)
        batch = double(episode(shots=shots))
        logits = module(batch)
        for task in range(2):
            support, queries = (module.backbone(x[task]).numpy() for x in (batch.support_x, batch.query_x))
            targets = torch.nn.functional.one_hot(batch.support_y[task]).double().numpy()
            head = Ridge(alpha=0.3, fit_intercept=False).fit(support, targets)
            expected = torch.from_numpy(7 * head.predict(queries) + 0.25)
            torch.testing.assert_close(logits[task], expected, rtol=1e-9, atol=1e-9)


def test_penalty_and_scale_are_learned_and_reset():
    module = R2D2Module(Conv4(hidden_channels=4), penalty=2.0, scale=3.0)
    module.training_loss(episode())[0].backward()
    assert module.log_penalty.grad.abs() > 0
    assert module.scale.grad.abs() > 0
    with torch.no_grad():
        for value in (module.log_penalty, module.scale, module.bias):
            value.fill_(9)
    twin = module.untrained_twin()
    assert (twin.log_penalty.exp().item(), twin.scale.item(), twin.bias.item()) == (pytest.approx(2), 3, 0)


def test_half_precision_embeddings_are_solved_in_float32():
    module = R2D2Module(MLP((1, 28, 28), (64,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = module.training_loss(episode())
    assert logits.dtype == torch.float32
    loss.backward()
    assert all(value.grad.isfinite().all() for value in module.parameters())


def test_one_class_and_uneven_shots():
    module = R2D2Module(MLP((3,), (4,)))
    x = torch.rand(5, 3)
    assert module.adapt(x, ["a"] * 5).predict(x[:1]) == ["a"]
    assert module.adapt(x, list("aaaab")).predict_proba(x).shape == (5, 2)


def test_wrong_arguments():
    for name in ("penalty", "scale"):
        with pytest.raises(UserError, match=f"{name} must be a number above 0"):
            R2D2Module(Conv4(), **{name: 0.0})
