"""MetaOptNet: against scikit-learn's machine on the embeddings, half precision, the learned scale."""

from __future__ import annotations

import pytest
import torch
from sklearn.svm import LinearSVC

from contract import episode
from metatransfer import MLP, Conv4, MetaOptNetModule, UserError


@pytest.mark.parametrize("shots", [1, 3])
def test_logits_are_those_of_a_support_vector_machine_on_the_embeddings(shots):
    module = MetaOptNetModule(MLP((1, 28, 28), (5,)), strength=0.5, scale=7.0).double().eval()
    batch = episode(shots=shots).map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        logits = module(batch)
        for task in range(2):
            support, queries = (module.backbone(x[task]) for x in (batch.support_x, batch.query_x))
            svm = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=0.5, tol=1e-9, max_iter=500_000)
            coefficients = torch.from_numpy(svm.fit(support.numpy(), batch.support_y[task].numpy()).coef_)
            torch.testing.assert_close(logits[task], 7 * queries @ coefficients.T, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_support_set_and_the_scale_is_reset():
    module = MetaOptNetModule(Conv4(hidden_channels=4), scale=3.0)
    embedded = torch.randn(1, 3, 4, requires_grad=True)
    state = module.fit_embeddings(embedded, torch.arange(3).unsqueeze(0))
    module.predict_embeddings(state, torch.randn(1, 2, 4)).square().sum().backward()
    assert embedded.grad.abs().max() > 0
    assert module.scale.grad.abs() > 0
    with torch.no_grad():
        module.scale.fill_(9)
    assert module.untrained_twin().scale.item() == 3.0


def test_half_precision_embeddings_are_solved_in_full_precision():
    module = MetaOptNetModule(MLP((1, 28, 28), (64,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = module.training_loss(episode())
    assert logits.dtype == torch.float32
    loss.backward()
    assert all(value.grad.isfinite().all() for value in module.parameters())


def test_one_class_and_uneven_shots():
    module = MetaOptNetModule(MLP((3,), (4,)))
    x = torch.rand(5, 3)
    assert module.adapt(x, ["a"] * 5).predict(x[:1]) == ["a"]
    assert module.adapt(x, list("aaaab")).predict_proba(x).shape == (5, 2)


def test_wrong_arguments():
    for name in ("strength", "scale"):
        with pytest.raises(UserError, match=f"{name} must be a number above 0"):
            MetaOptNetModule(Conv4(), **{name: 0.0})
