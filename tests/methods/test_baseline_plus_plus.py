"""Baseline and Baseline++: output layers of tasks against autograd and scikit-learn."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from contract import episode
from metatransfer import BaselinePlusPlusModule, Conv4, CosineHead, LinearHead, UserError
from metatransfer.functional.meta.task_heads import fitted_cosine_heads, fitted_linear_heads


def tasks(shots=(1, 3, 2), size=5):
    torch.manual_seed(0)
    labels = torch.cat([torch.full((count,), way) for way, count in enumerate(shots)]).repeat(2, 1)
    return torch.rand(2, labels.shape[1], size).double(), labels


def by_autograd(logits, parameters, labels, steps, lr):
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(logits(*parameters), labels), parameters)
        parameters = [(value - lr * own).detach().requires_grad_() for value, own in zip(parameters, gradients,
                                                                                         strict=True)]  # fmt: skip
    return parameters


def test_linear_heads_against_autograd():
    support, labels = tasks()
    weight, bias = fitted_linear_heads(support, labels, 3, steps=7, lr=0.3)
    for task in range(2):
        start = [torch.zeros(3, 5).double().requires_grad_(), torch.zeros(3).double().requires_grad_()]
        own = by_autograd(lambda w, b, x=support[task]: F.linear(x, w, b), start, labels[task], 7, 0.3)
        torch.testing.assert_close(weight[task], own[0].detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(bias[task, :, 0], own[1].detach(), rtol=1e-9, atol=1e-12)


def test_cosine_heads_against_autograd():
    support, labels = tasks()
    weight, factor = fitted_cosine_heads(support, labels, 3, steps=7, lr=0.3, scale=4.0)
    for task in range(2):
        x = F.normalize(support[task], dim=-1)
        mean = F.normalize(x.mean(0), dim=0).repeat(3, 1)
        start = [mean.requires_grad_(), torch.tensor(4.0).double().requires_grad_()]
        own = by_autograd(lambda w, s, x=x: s * x @ F.normalize(w, dim=-1).T, start, labels[task], 7, 0.3)
        torch.testing.assert_close(weight[task], own[0].detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(factor[task], own[1].detach().expand(3, 1), rtol=1e-9, atol=1e-12)


def test_many_steps_agree_with_scikit_learn_in_every_answer():
    support, labels = tasks(shots=(6, 6, 6))
    weight, bias = fitted_linear_heads(support, labels, 3, steps=3000, lr=1.0)
    queries = torch.rand(50, 5).double()
    reference = LogisticRegression(C=1e6, max_iter=5000).fit(support[0].numpy(), labels[0].numpy())
    found = (queries @ weight[0].T + bias[0, :, 0]).argmax(-1)
    assert (found.numpy() == reference.predict(queries.numpy())).mean() > 0.85


@pytest.mark.parametrize("head", [CosineHead, LinearHead])
def test_a_task_gets_its_own_output_layer(head):
    module = BaselinePlusPlusModule(Conv4(hidden_channels=4), 9, head, steps=5, lr=0.2).double().eval()
    batch = episode().map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad():
        support, queries = (module.backbone(x[1]) for x in (batch.support_x, batch.query_x))
        fit = fitted_cosine_heads if head is CosineHead else fitted_linear_heads
        weight, other = (part[0] for part in fit(support[None], batch.support_y[1:], 3, 5, 0.2))
        expected = F.linear(queries, weight, other.squeeze(1))
        if head is CosineHead:
            expected = other[0] * F.cosine_similarity(queries[:, None], weight[None], dim=-1)
        torch.testing.assert_close(module(batch)[1], expected)
    assert module.protocol()["head_steps"] == 5
    assert module.protocol()["distance"] == ("cosine" if head is CosineHead else "linear")


def test_features_of_zero_and_half_precision():
    module = BaselinePlusPlusModule(Conv4(hidden_channels=4), 9, steps=3)
    zeros, labels = torch.zeros(1, 4, 4, dtype=torch.bfloat16), torch.tensor([[0, 1, 0, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module.predict_embeddings(module.fit_embeddings(zeros, labels), zeros)
    assert outputs.dtype == torch.float32
    assert outputs.isfinite().all()


def test_wrong_arguments():
    class Other(LinearHead.__mro__[1]):
        def forward(self, features):
            return features

    with pytest.raises(UserError, match="head creates a Other: use CosineHead or LinearHead"):
        BaselinePlusPlusModule(Conv4(), 9, Other)
    with pytest.raises(UserError, match="steps"):
        BaselinePlusPlusModule(Conv4(), 9, steps=0)
    with pytest.raises(UserError, match="lr must be a number above 0"):
        BaselinePlusPlusModule(Conv4(), 9, lr=0)
    with pytest.raises(UserError, match="BaselinePlusPlusModule needs num_classes"):
        BaselinePlusPlusModule(Conv4())
