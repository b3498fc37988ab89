"""Transferability scores against slow references and their invariances, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LinearRegression

from messages import keep
from metatransfer.errors import UserError
from metatransfer.functional import h_score, leep, log_me, nce, trans_rate
from metatransfer.functional.transferability import gram


def samples(n=60, d=5, classes=3, seed=0, apart=1.0):
    """Features whose class means differ, and labels with a gap in their numbers."""
    make = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=make)
    y[:classes] = torch.arange(classes)
    means = apart * torch.randn(classes, d, generator=make, dtype=torch.float64)
    return torch.randn(n, d, generator=make, dtype=torch.float64) + means[y], y * 2 + 1


def probabilities(n, classes, seed=3):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


# ---- LogME


def best_evidence(x, y):
    """The largest density of the targets, by direct maximisation over both variances."""

    def loss(logs):
        covariance = math.exp(-logs[1]) * np.eye(len(x)) + math.exp(-logs[0]) * x @ x.T
        return -multivariate_normal.logpdf(y, np.zeros(len(x)), covariance) / len(x)

    starts = [(0.0, 1.0), (5.0, 1.0)]
    found = [minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}) for start in starts]
    return -min(one.fun for one in found)


@pytest.mark.parametrize(("n", "d"), [(30, 4), (15, 30)])
def test_log_me_is_the_largest_evidence(n, d):
    x, y = samples(n, d)
    expected = np.mean([best_evidence(x.numpy(), (y == one).double().numpy()) for one in y.unique()])
    assert float(log_me(x, y)) == pytest.approx(expected, abs=1e-6)


def test_log_me_of_a_regression():
    x, _ = samples(30, 3)
    y = x @ torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, -1.0]], dtype=torch.float64)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [best_evidence(x.numpy(), column.numpy()) for column in y.T]
    assert float(log_me(x, y)) == pytest.approx(np.mean(expected), abs=1e-6)
    assert float(log_me(x, y[:, 0])) == pytest.approx(expected[0], abs=1e-6)


def test_log_me_ignores_rotations_repeated_scales_and_constant_zeros():
    x, y = samples()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    value = log_me(x, y)
    torch.testing.assert_close(log_me(x @ rotation, y), value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_me(1000 * x, y), value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_me(torch.cat([x, torch.zeros(60, 3)], 1), y), value, rtol=1e-10, atol=1e-10)


def test_log_me_of_zeros_and_of_the_labels_themselves():
    _, y = samples()
    nothing = [0.5 * (-math.log(float((y == one).double().mean())) - 1 - math.log(2 * math.pi)) for one in y.unique()]
    assert float(log_me(torch.zeros(60, 2), y)) == pytest.approx(np.mean(nothing), abs=1e-9)
    perfect = log_me((y.unsqueeze(1) == y.unique()).double(), y)
    assert 5 < float(perfect) < 50


# ---- H-score


def slow_h_score(x, y, covariance=None):
    x = x.numpy() - x.numpy().mean(0)
    means = np.stack([x[y.numpy() == one].mean(0) for one in y.numpy()])
    own = np.cov(x, rowvar=False, bias=True) if covariance is None else covariance
    return np.trace(np.linalg.pinv(own, rcond=1e-12) @ np.cov(means, rowvar=False, bias=True))


def test_h_score_is_the_trace():
    x, y = samples()
    assert float(h_score(x, y)) == pytest.approx(slow_h_score(x, y), abs=1e-10)


def test_h_score_of_two_classes_is_the_explained_variance_of_their_regression():
    x, y = samples(classes=2)
    label = (y == 1).double().numpy()
    assert float(h_score(x, y)) == pytest.approx(LinearRegression().fit(x, label).score(x, label), abs=1e-10)


def test_h_score_ignores_invertible_maps_and_features_that_follow_from_others():
    x, y = samples()
    make = torch.Generator().manual_seed(5)
    mixing = torch.randn(5, 5, generator=make, dtype=torch.float64) + 3 * torch.eye(5)
    value = h_score(x, y)
    torch.testing.assert_close(h_score(x @ mixing + 7, y), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(h_score(x * torch.tensor([1e-6, 1, 1, 1, 1e6]), y), value, rtol=1e-9, atol=1e-9)
    dependent = torch.cat([x, x @ mixing[:, :2], torch.full((60, 2), 0.3, dtype=torch.float64)], 1)
    torch.testing.assert_close(h_score(dependent, y), value, rtol=1e-9, atol=1e-9)


def test_h_score_lies_between_0_and_the_number_of_classes_minus_1():
    x, y = samples(apart=100.0)
    assert 1.99 < float(h_score(x, y)) <= 2
    assert float(h_score(torch.ones(60, 3), y)) == 0
    few = torch.randn(10, 50, dtype=torch.float64)
    assert float(h_score(few, torch.arange(10) % 5)) == pytest.approx(4)  # of any features, as there are more than n


@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 40)])
def test_h_score_with_shrinkage_is_that_of_scikit_learns_covariance(n, d):
    x, y = samples(n, d)
    fitted = LedoitWolf().fit(x.numpy())
    expected = (1 - fitted.shrinkage_) * slow_h_score(x, y, fitted.covariance_)
    assert 0 < fitted.shrinkage_ < 1
    assert float(h_score(x, y, shrinkage=True)) == pytest.approx(expected, abs=1e-10)


def test_shrinkage_tells_networks_apart_where_samples_are_few():
    good, y = samples(20, 40, apart=2.0)
    bad = torch.randn(20, 40, dtype=torch.float64)
    assert float(h_score(good, y)) == pytest.approx(float(h_score(bad, y)))
    assert float(h_score(good, y, shrinkage=True)) > 2 * float(h_score(bad, y, shrinkage=True))


# ---- LEEP and NCE


def test_leep_is_the_double_loop():
    theta, (_, y) = probabilities(30, 4), samples(30)
    total = 0.0
    for i in range(30):
        expected = 0.0
        for z in range(4):
            joint = sum(float(theta[j, z]) for j in range(30) if y[j] == y[i]) / 30
            expected += joint / (sum(float(theta[j, z]) for j in range(30)) / 30) * float(theta[i, z])
        total += math.log(expected)
    assert float(leep(theta, y)) == pytest.approx(total / 30, abs=1e-12)


def test_nce_is_the_conditional_entropy_by_hand():
    z = torch.tensor([0, 0, 0, 7, 7, 7, 7, 9])
    y = torch.tensor([1, 1, 2, 2, 2, 5, 1, 1])
    within = {0: [2, 1], 7: [2, 1, 1], 9: [1]}
    entropy = sum(
        sum(counts) / 8 * -sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts)
        for counts in within.values()
    )
    assert float(nce(z, y)) == pytest.approx(-entropy, abs=1e-12)


def test_nce_ignores_the_names_of_classes_and_is_leep_of_certain_predictions():
    _, y = samples(40)
    z = torch.randint(5, (40,), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(nce(z, y), nce(100 - 3 * z, y))
    certain = torch.nn.functional.one_hot(z, 6).double()  # one class is never predicted
    torch.testing.assert_close(leep(certain, y), nce(z, y))


def test_bounds_of_leep_and_nce():
    _, y = samples(40)
    same = y.unique(return_inverse=True)[1]
    assert float(nce(y, y)) == pytest.approx(0, abs=1e-12)
    assert float(leep(torch.nn.functional.one_hot(same).double(), y)) == pytest.approx(0, abs=1e-12)
    shares = torch.bincount(same).double() / 40
    lowest = -float(torch.special.entr(shares).sum())
    assert float(nce(torch.zeros(40, dtype=torch.int64), y)) == pytest.approx(lowest, abs=1e-12)
    assert float(leep(torch.full((40, 7), 1 / 7), y)) == pytest.approx(lowest, abs=1e-6)
    assert lowest <= float(leep(probabilities(40, 6), y)) <= 0


# ---- TransRate


def test_trans_rate_is_the_difference_of_coding_rates():
    x, y = samples(30, 4)
    centred = x.numpy() - x.numpy().mean(0)

    def rate(z):
        return 0.5 * np.linalg.slogdet(np.eye(4) + z.T @ z / (len(z) * 1e-2))[1]

    within = sum((y.numpy() == one).mean() * rate(centred[y.numpy() == one]) for one in y.unique().numpy())
    assert float(trans_rate(x, y, epsilon=1e-2)) == pytest.approx(rate(centred) - within, abs=1e-10)


def test_trans_rate_ignores_rotations_and_shifts():
    x, y = samples(30, 40)
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    torch.testing.assert_close(trans_rate(x @ rotation + 3, y), trans_rate(x, y), rtol=1e-9, atol=1e-9)


def test_all_scores_prefer_features_that_tell_the_classes_apart():
    near, y = samples(200, 8, apart=0.3)
    far, _ = samples(200, 8, apart=3.0)
    for score in (log_me, h_score, trans_rate):
        assert float(score(far, y)) > float(score(near, y)), score.__name__


# ---- all of them


def test_half_precision_and_any_integers():
    x, y = samples()
    torch.testing.assert_close(log_me(x.half(), y.int()), log_me(x.half().double(), y))
    theta = probabilities(60, 4).half()
    assert leep(theta, y).dtype == torch.float64


@pytest.mark.parametrize("width", [3, 64, 150])
def test_gram_is_the_product(width):
    x = torch.randn(7, width, dtype=torch.float64)
    torch.testing.assert_close(gram(x), x.T @ x, rtol=1e-13, atol=1e-13)


Y = torch.arange(10) % 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_me(torch.ones(10, 2, 2), Y), "(10, 2, 2)"),
        (lambda: log_me(torch.ones(10, 2, dtype=torch.int64), Y), "int64"),
        (lambda: log_me(torch.rand(10, 2), torch.full((10,), torch.nan)), "finite"),
        (lambda: log_me(torch.rand(10, 2), torch.zeros(10, 2)), "may be 0"),
        (lambda: trans_rate(1e9 * torch.arange(10.0)[:, None].expand(10, 3), Y), "standardise"),
        (lambda: h_score(torch.ones(9, 2), Y), "9 samples"),
        (lambda: h_score(torch.ones(10, 2), Y * 0), "2 classes"),
        (lambda: h_score(torch.ones(10, 2), Y.float()), "float32"),
        (lambda: trans_rate(torch.full((10, 2), torch.nan), Y), "finite"),
        (lambda: trans_rate(torch.ones(10, 2), Y, epsilon=0.0), "epsilon"),
        (lambda: leep(torch.randn(10, 3), Y), "softmax"),
        (lambda: leep(torch.ones(10, 3), Y), "sum to 1"),
        (lambda: nce(torch.rand(10, 3), Y), "argmax"),
        (lambda: nce(torch.arange(9), Y), "(9,)"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in keep(str(caught.value))
