"""Ridge regression in closed form: against scikit-learn, finite differences, singular systems."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge

from metatransfer import UserError
from metatransfer.functional import ridge_weights


def tasks(samples, features, targets=3, count=2):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(count, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(samples, features), draw(samples, targets)


@pytest.mark.parametrize(("samples", "features"), [(4, 7), (7, 7), (9, 4)])
@pytest.mark.parametrize("penalty", [0.03, 2.0])
def test_weights_are_those_of_scikit_learn(samples, features, penalty):
    x, y = tasks(samples, features)
    found = ridge_weights(x, y, penalty)
    for task in range(2):
        expected = Ridge(alpha=penalty, fit_intercept=False).fit(x[task].numpy(), y[task].numpy()).coef_.T
        torch.testing.assert_close(found[task], torch.from_numpy(expected), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("samples", "features"), [(3, 5), (5, 3)])
def test_gradients_are_finite_differences(samples, features):
    x, y = (part.requires_grad_() for part in tasks(samples, features))
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ridge_weights, (x, y, penalty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("samples", "features"), [(4, 7), (9, 4)])
def test_a_singular_system_is_one_sentence(dtype, samples, features):
    x, y = (part.to(dtype) for part in tasks(samples, features))
    assert ridge_weights(x, y, 0.0).isfinite().all()  # not singular without a penalty
    if samples < features:
        x[1, 3] = x[1, 0]  # a repeated sample
    else:
        x[1, :, 3] = x[1, :, 0]  # a repeated feature
    with pytest.raises(UserError, match=r"ridge system of a task is singular.*: use a larger penalty\.$"):
        ridge_weights(x, y, 0.0)
    assert ridge_weights(x, y, 0.1).isfinite().all()


def test_half_precision_is_widened_also_under_autocast():
    x, y = (part.to(torch.float16) for part in tasks(4, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ridge_weights(x, y, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ridge_weights(x.double(), y.double(), 0.5).float(), rtol=1e-5, atol=1e-5)


def test_nan_is_passed_on_and_not_called_singular():
    x, y = tasks(4, 7)
    x[0, 0, 0] = torch.nan
    found = ridge_weights(x, y, 0.5)
    assert found[0].isnan().any()
    assert found[1].isfinite().all()
