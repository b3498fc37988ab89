"""CKA and SVCCA against slow references and their invariances, in float64."""

from __future__ import annotations

import pytest
import torch
from sklearn.cross_decomposition import CCA

from messages import keep
from metatransfer.errors import UserError
from metatransfer.functional import linear_cka, relative_change, svcca


def features(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=9):
    return torch.linalg.qr(features(d, d, seed))[0]


def related(n=40, d=6, e=4):
    x = features(n, d, 0)
    return x, x[:, :e] @ features(e, e, 1) + 0.5 * features(n, e, 2) + 3


def slow_hsic(x, y):
    """By the definition, as a double loop over pairs of samples."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    total = 0.0
    for i in range(n):
        for j in range(n):
            centred = k[i, j] - k[i].mean() - k[:, j].mean() + k.mean()
            total += float(centred * (l[i, j] - l[i].mean() - l[:, j].mean() + l.mean()))
    return total


def slow_unbiased_hsic(x, y):
    """The U-statistic: the mean over all quadruples of different samples."""
    n, (k, l) = len(x), (x @ x.T, y @ y.T)  # noqa: E741
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                        count += 1
    return total / count


@pytest.mark.parametrize(("n", "d", "e"), [(12, 5, 3), (6, 9, 4), (5, 30, 20)])
def test_cka_is_the_double_loop(n, d, e):
    x, y = features(n, d, 0), features(n, e, 1)
    expected = slow_hsic(x, y) / (slow_hsic(x, x) * slow_hsic(y, y)) ** 0.5
    assert float(linear_cka(x, y)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("d", "e"), [(3, 2), (9, 12)])
def test_unbiased_cka_is_the_loop_over_quadruples(d, e):
    x, y = features(7, d, 0), features(7, e, 1) + 5
    hsic = slow_unbiased_hsic
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert float(linear_cka(x, y, unbiased=True)) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("n", [30, 300])
def test_cka_is_the_dual_form(n, unbiased):
    x, y = related(n, 200, 70)
    k, l = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))  # noqa: E741

    def hsic(a, b):
        if not unbiased:
            return (a * b).sum()
        a, b = a - a.diag().diag(), b - b.diag().diag()
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b).sum() / (n - 2)
        return (a * b).sum() + sums

    expected = hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    torch.testing.assert_close(linear_cka(x, y, unbiased=unbiased), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_ignores_rotations_shifts_and_scales(unbiased):
    x, y = related()
    value = linear_cka(x, y, unbiased=unbiased)
    assert 0.2 < float(value) < 0.99
    moved = 3 * x @ rotation(6) + 1
    torch.testing.assert_close(linear_cka(moved, y @ rotation(4), unbiased=unbiased), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(linear_cka(x, moved, unbiased=unbiased), torch.ones_like(value), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(linear_cka(y, x, unbiased=unbiased), value)
    assert (
        abs(float(linear_cka(x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double()), y) - linear_cka(x, y))) > 0.01
    )


def test_unbiased_cka_of_unrelated_features_is_near_0_with_few_samples():
    x, y = features(20, 400, 0), features(20, 400, 1)
    assert float(linear_cka(x, y)) > 0.9
    assert abs(float(linear_cka(x, y, unbiased=True))) < 0.1


def test_svcca_is_scikit_learns_cca():
    x, y = related(200, 5, 3)
    pairs = CCA(n_components=3, scale=False, tol=1e-12, max_iter=5000).fit(x.numpy(), y.numpy())
    scores = [torch.from_numpy(one) for one in pairs.transform(x.numpy(), y.numpy())]
    expected = torch.corrcoef(torch.cat(scores, 1).T)[:3, 3:].diag().mean()
    torch.testing.assert_close(svcca(x, y, kept=1.0), expected, rtol=1e-6, atol=1e-6)


def test_svcca_ignores_invertible_maps_of_the_kept_directions():
    x, y = related()
    value = svcca(x, y, kept=1.0)
    mixing = features(6, 6, 4) + 3 * torch.eye(6)
    torch.testing.assert_close(svcca(x @ mixing + 2, y, kept=1.0), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(svcca(x @ rotation(6), 5 * y), svcca(x, y), rtol=1e-10, atol=1e-10)


def test_svcca_leaves_out_directions_of_little_variance():
    x, y = features(50, 3, 0), features(50, 3, 1)
    x[:, 2], y[:, 2] = x[:, 2] * 1e-3, x[:, 2]
    y[:, :2] = x[:, :2]
    assert float(svcca(x, torch.cat([y[:, :2], 1e-3 * features(50, 1, 5)], 1))) == pytest.approx(1)
    repeated = torch.cat([x, x], 1)  # of rank 3
    torch.testing.assert_close(svcca(repeated, y, kept=1.0), svcca(x, y, kept=1.0), rtol=1e-9, atol=1e-9)


def test_precision_is_float32_or_wider():
    x, y = related()
    assert linear_cka(x.half(), y.half()).dtype == torch.float32
    torch.testing.assert_close(linear_cka(x.float(), y), linear_cka(x, y), rtol=1e-6, atol=1e-6)


X = torch.eye(5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_cka(X, X[:3]), "(3, 5)"),
        (lambda: linear_cka(X[:3], X[:3], unbiased=True), "4 or more"),
        (lambda: linear_cka(X.view(5, 5, 1), X), "flatten"),
        (lambda: linear_cka(X, torch.full((5, 2), 0.1)), "same features"),
        (lambda: linear_cka(X, X / 0), "finite"),
        (lambda: linear_cka(X, torch.arange(25.0).view(5, 5), unbiased=True), "equally similar"),
        (lambda: linear_cka(torch.arange(25.0).view(5, 5), X.double(), unbiased=True), "equally similar"),
        (lambda: svcca(X, torch.full((5, 2), 0.1)), "same features"),
        (lambda: svcca(X, X, kept=0.0), "kept"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in keep(str(caught.value))


def test_relative_change():
    before = {"weight": torch.tensor([[3.0, 0.0]]), "bias": torch.tensor([4.0])}
    after = {"weight": torch.tensor([[3.0, 1.0]]), "bias": torch.tensor([4.0])}
    assert relative_change(before, after) == pytest.approx(1 / 5)
    assert relative_change(before, before) == 0
    zero = {name: 0 * value for name, value in before.items()}
    assert relative_change(zero, after) == float("inf")
    assert relative_change(zero, zero) == 0


@pytest.mark.parametrize(
    "wrong", [torch.zeros(5, 0), torch.zeros(5, 3, dtype=torch.complex64), torch.full((5, 3), torch.nan)]
)
def test_features_that_are_none_are_one_sentence(wrong):
    for pair in ((wrong, torch.rand(5, 2)), (torch.rand(5, 2), wrong)):
        with pytest.raises(UserError, match=r"needs two matrices|needs finite floating-point"):
            linear_cka(*pair)
