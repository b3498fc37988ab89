"""The multi-class support vector machine: against a general QP solver, scikit-learn and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, minimize
from sklearn.svm import LinearSVC

from metatransfer.functional import svm_dual


def task(samples, features, ways, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, samples, features, generator=generator, dtype=torch.float64)
    return x, torch.arange(samples).remainder(ways).expand(count, -1)


def weights(x, labels, ways, strength):
    return svm_dual(x, labels, ways, strength).mT @ x


@pytest.mark.parametrize(("samples", "features", "strength"), [(5, 8, 0.1), (6, 8, 2.0), (6, 3, 0.5)])
def test_the_dual_is_that_of_a_general_solver(samples, features, strength):
    x, y = task(samples, features, 3, count=2)
    found = svm_dual(x, y, 3, strength)
    for alpha, one, labels in zip(found, x, y, strict=True):
        kernel, own = (one @ one.T).numpy(), F.one_hot(labels, 3).double().numpy()

        def objective(flat, kernel=kernel, own=own):
            flat = flat.reshape(own.shape)
            return 0.5 * np.einsum("nk,nm,mk", flat, kernel, flat) - (own * flat).sum()

        def slope(flat, kernel=kernel, own=own):
            return (kernel @ flat.reshape(own.shape) - own).ravel()

        general = minimize(
            objective, np.zeros(own.size), jac=slope, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
            bounds=[(None, bound) for bound in (strength * own).ravel()],
            constraints=LinearConstraint(np.kron(np.eye(samples), np.ones((1, 3))), 0, 0),
        )  # fmt: skip
        assert objective(alpha.numpy().ravel()) <= general.fun + 1e-11
        assert objective(alpha.numpy().ravel()) == pytest.approx(general.fun, rel=1e-6)
        assert alpha.sum(-1).abs().max() < 1e-13
        assert (alpha <= strength * F.one_hot(labels, 3) + 1e-13).all()


@pytest.mark.parametrize(
    ("samples", "features", "ways", "strength"), [(5, 8, 5, 0.1), (10, 4, 5, 1.0), (7, 3, 2, 10.0)]
)
def test_the_weights_are_those_of_scikit_learn(samples, features, ways, strength):
    x, y = task(samples, features, ways)
    svm = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=strength, tol=1e-9, max_iter=200_000)
    expected = torch.from_numpy(svm.fit(x[0].numpy(), y[0].numpy()).coef_)
    found = weights(x, y, ways, strength)[0]
    if ways == 2:  # scikit-learn has the one vector that separates them
        found = found[1:] - found[:1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("samples", "features", "strength"), [(5, 8, 0.1), (6, 8, 0.3), (9, 4, 0.3)])
def test_the_gradient_is_that_of_finite_differences_of_the_solution(samples, features, strength):
    x, y = task(samples, features, 3)
    along, out = (torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                  for shape in (x.shape, (1, 3, features)))  # fmt: skip
    x.requires_grad_()
    found = (torch.autograd.grad((weights(x, y, 3, strength) * out).sum(), x)[0] * along).sum()
    with torch.no_grad():
        sides = [(weights(x + step * along, y, 3, strength) * out).sum() for step in (1e-5, -1e-5)]
    torch.testing.assert_close(found, (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_tasks_are_solved_independently_and_renaming_classes_renames_the_solution():
    x, y = task(9, 4, 3, count=3)
    x = x * torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)[:, None, None]  # some take more steps than others
    found, rename = svm_dual(x, y, 3, 0.5), torch.tensor([2, 0, 1])
    for index in range(3):
        torch.testing.assert_close(svm_dual(x[index : index + 1], y[:1], 3, 0.5)[0], found[index], rtol=0, atol=1e-10)
    torch.testing.assert_close(svm_dual(x, rename[y], 3, 0.5)[..., rename], found, rtol=0, atol=1e-10)


def test_a_class_without_samples_takes_no_part():
    x, _ = task(6, 4, 2)
    y = torch.tensor([[0, 2, 0, 2, 0, 0]])
    found = svm_dual(x, y, 3, 0.5)
    assert (found[..., 1] == 0).all()
    torch.testing.assert_close(found[..., [0, 2]], svm_dual(x, y // 2, 2, 0.5), rtol=0, atol=1e-12)


def test_one_class_zeros_and_repeated_samples_have_a_solution_and_a_gradient():
    x, y = task(6, 4, 3)
    assert svm_dual(x, torch.zeros_like(y), 1, 0.5).abs().max() < 1e-14
    for odd in (torch.zeros_like(x), x[:, :1].expand_as(x), x[:, [0, 1, 2, 0, 1, 2]]):
        odd = odd.clone().requires_grad_()
        found = weights(odd, y, 3, 0.5)
        found.square().sum().backward()
        assert found.isfinite().all()
        assert odd.grad.isfinite().all()


def test_single_and_half_precision_give_the_double_solution():
    x, y = task(25, 64, 5)
    expected = svm_dual(x.half().double(), y, 5, 0.1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = svm_dual(x.half(), y, 5, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
