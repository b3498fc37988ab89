"""Importance weights against scipy's solvers, the conditions of an optimum and known ratios."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from metatransfer import UserError
from metatransfer.functional.domain import importance


def domains(n=30, m=25, d=2, seed=0, bandwidth=None):
    generator = np.random.default_rng(seed)
    source, target = generator.normal(size=(n, d)), generator.normal(size=(m, d)) * 0.6 + 0.7
    width = importance.median_bandwidth(np.concatenate([source, target])) if bandwidth is None else bandwidth
    return source, target, width


def quadratic(n=30, m=25, d=2, seed=0, bandwidth=None):
    source, target, width = domains(n, m, d, seed, bandwidth)
    kernel = importance.gaussian_kernel(source, source, width)
    return kernel, n / m * importance.gaussian_kernel(source, target, width).sum(1)


def test_the_kernel_is_that_of_its_formula():
    source, target, _ = domains(4, 3)
    found = importance.gaussian_kernel(source, target, 0.8)
    for i, j in np.ndindex(4, 3):
        assert found[i, j] == pytest.approx(np.exp(-np.sum((source[i] - target[j]) ** 2) / (2 * 0.8**2)), rel=1e-13)


def test_the_median_bandwidth():
    x = np.array([[0.0], [1.0], [3.0]])
    assert importance.median_bandwidth(x) == 2
    assert importance.median_bandwidth(np.repeat(x[:2], [9, 1], axis=0)) == pytest.approx(0.2)  # of 45 pairs 9 differ
    assert importance.median_bandwidth(np.ones((5, 2))) == 1
    many = np.random.default_rng(0).normal(size=(3000, 2))
    assert importance.median_bandwidth(many) == pytest.approx(importance.median_bandwidth(many, 3000), rel=0.05)


def test_the_effective_sample_size():
    assert importance.effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert importance.effective_sample_size(np.array([5.0, 0, 0])) == 1
    assert importance.effective_sample_size(np.array([1e200, 1e200, 0])) == pytest.approx(2)


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    ("limit", "slack", "bandwidth"),
    [
        (1000.0, None, None),  # the sum alone, or nothing
        (3.0, 0.05, 0.1),  # its lower end
        (1.5, 1e-3, None),  # the largest weight, too
        (5.0, 1.5, 2.0),  # a slack above 1
        (1000.0, 0.01, 10.0),  # a kernel of which little but its mean is left
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_kernel_mean_matching_is_as_good_as_scipy(limit, slack, bandwidth, seed):
    kernel, similarity = quadratic(bandwidth=bandwidth, seed=seed)
    n = len(kernel)
    room = 1 - n**-0.5 if slack is None else slack

    def objective(w):
        return 0.5 * w @ kernel @ w - similarity @ w

    found = importance.kernel_mean_matching(kernel, similarity, limit, slack)
    assert found.min() >= 0
    assert found.max() <= limit
    assert abs(found.mean() - 1) <= room + 1e-9
    ends = [{"type": "ineq", "fun": lambda w, s=s: n * room - s * (w.sum() - n)} for s in (1, -1)]
    reference = optimize.minimize(
        objective,
        np.ones(n),
        jac=lambda w: kernel @ w - similarity,
        bounds=[(0, limit)] * n,
        constraints=ends,
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-14},
    )
    assert reference.status in {0, 8}  # 8: rounding allows no further step
    assert objective(found) < objective(np.ones(n)) - 1e-3
    assert objective(found) <= reference.fun + 1e-6
    if reference.fun < objective(found):
        assert objective(found) == pytest.approx(reference.fun, abs=1e-6)
    # and whoever else solves it: no weights are better along the slope, by a linear program
    slope = kernel @ found - similarity
    sums = np.stack([np.ones(n), -np.ones(n)])
    best = optimize.linprog(slope, sums, [n * (1 + room), n * (room - 1)], bounds=(0, limit))
    assert slope @ found - best.fun < 1e-5


@pytest.mark.parametrize(
    ("limit", "slack", "scale", "mean"),
    [
        (1000.0, 0.05, 50.0, 1.05),  # the upper end of the sum
        (1000.0, 0.05, 0.01, 0.95),  # its lower end
        (1000.0, None, 50.0, 2 - 30**-0.5),  # the default is 1 - 1/sqrt(n), on both sides
        (1000.0, None, 0.001, 30**-0.5),
        (1.2, 3.0, 1.0, None),  # the largest weights add up to less than the sum may be
    ],
)
def test_the_mean_of_the_weights_stays_within_the_slack(limit, slack, scale, mean):
    """A similarity that is scaled draws the sum of the weights to one of its ends."""
    kernel, similarity = quadratic(bandwidth=0.1)
    similarity = scale * similarity
    found = importance.kernel_mean_matching(kernel, similarity, limit, slack)
    assert mean is None or found.mean() == pytest.approx(mean, rel=1e-6)
    assert found.min() >= 0
    assert found.max() <= limit * (1 + 1e-9)
    slope, n = kernel @ found - similarity, len(found)
    room = 1 - n**-0.5 if slack is None else slack
    best = optimize.linprog(
        slope, np.stack([np.ones(n), -np.ones(n)]), [n * (1 + room), -n * max(0, 1 - room)], bounds=(0, limit)
    )
    assert slope @ found == pytest.approx(best.fun, rel=1e-6)


def test_kernel_mean_matching_of_equal_domains_is_1():
    source, _, width = domains()
    kernel = importance.gaussian_kernel(source, source, width)
    found = importance.kernel_mean_matching(kernel, kernel.sum(1))
    value = 0.5 * found @ kernel @ found - kernel.sum(1) @ found
    assert value == pytest.approx(-0.5 * kernel.sum(), abs=1e-6)


def test_kernel_mean_matching_copes_with_samples_that_coincide():
    found = importance.kernel_mean_matching(np.ones((20, 20)), np.full(20, 20.0))
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)
    generator = np.random.default_rng(0)
    for seed in range(20):  # half of the source is one sample, at any bandwidth
        source, target, _ = domains(seed=seed)
        source[::2] = source[0]
        width = 10 ** generator.uniform(-2, 2)
        kernel = importance.gaussian_kernel(source, source, width)
        weights = importance.kernel_mean_matching(kernel, importance.gaussian_kernel(source, target, width).sum(1))
        assert np.isfinite(weights).all()


@pytest.mark.parametrize(("limit", "slack"), [(1.0, None), (1000.0, 0.0), (1000.0, -1.0)])
def test_kernel_mean_matching_refuses_what_has_no_solution(limit, slack):
    with pytest.raises(UserError, match="needs limit > 1 and slack > 0"):
        importance.kernel_mean_matching(*quadratic(), limit, slack)


@pytest.mark.filterwarnings("ignore")
def test_a_tolerance_that_cannot_be_met_is_told():
    with pytest.raises(UserError, match="did not reach the tolerance 0 in"):
        importance.kernel_mean_matching(*quadratic(n=5), tolerance=0.0)
    source, target, width = domains()
    kernels = [importance.gaussian_kernel(x, target, width) for x in (source, target)]
    with pytest.raises(UserError, match="did not reach the tolerance -1 in"):
        importance.kliep(*kernels, tolerance=-1.0)


@pytest.mark.parametrize("part", [0.05, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_kliep_is_as_good_as_scipy(part, seed):
    source, target, width = domains(40, 30, seed=seed)
    mine, other = (importance.gaussian_kernel(x, target[:8], part * width) for x in (source, target))
    mine, other = np.maximum(mine, 1e-30), np.maximum(other, 1e-30)
    alpha = importance.kliep(mine, other)
    assert (alpha >= 0).all()
    assert (mine @ alpha).mean() == pytest.approx(1, rel=1e-10)
    likelihood = np.log(other @ alpha).mean()
    means = mine.mean(0)
    # the same problem in proportions, where each kernel alone has the mean 1
    reference = optimize.minimize(
        lambda beta: -np.log(other / means @ beta).mean(),
        np.full(8, 1 / 8),
        jac=lambda beta: -(other / means / (other / means @ beta)[:, None]).mean(0),
        bounds=[(1e-12, 1)] * 8,
        constraints={"type": "eq", "fun": lambda beta: beta.sum() - 1, "jac": lambda beta: np.ones(8)},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert likelihood >= -reference.fun - 1e-6
    # no kernel that gets more weight makes the target likelier: Karush, Kuhn and Tucker
    slope = (other / (other @ alpha)[:, None]).mean(0) / means
    assert slope.max() <= 1 + 2e-7
    assert slope[alpha * means > 1e-3] == pytest.approx(1, abs=1e-4)


def test_the_likelihood_of_held_out_samples_is_what_the_bandwidth_is_chosen_by():
    source, target, _ = domains(60, 40)
    centers, fold = np.arange(12, 22), np.arange(40) % 4
    candidates = [0.005, 0.3, 1.0, 20.0]

    def score(width):
        found = 0.0
        for f in range(4):
            known = target[[c for c in centers if fold[c] != f]]
            kernels = [
                importance.gaussian_kernel(x, known, width) for x in (source, target[fold != f], target[fold == f])
            ]
            mine, other, held = (np.maximum(kernel, 1e-30) for kernel in kernels)
            found += np.log(held @ importance.kliep(mine, other)).sum()
        return found

    best = max(candidates, key=score)
    for order in (candidates, candidates[::-1]):
        assert importance.kliep_bandwidth(source, target, centers, order, fold) == best
    assert best not in (0.005, 20.0)


def test_far_centers_give_numbers():
    source, target, _ = domains()
    kernels = [importance.gaussian_kernel(x, target + 1e6, 0.1) for x in (source, target)]
    alpha = importance.kliep(*kernels)
    np.testing.assert_allclose(importance.kliep_weights(kernels[0], alpha), 1.0, rtol=1e-6)


def test_discriminator_weights_are_the_ratio_of_the_densities():
    """Of two normal distributions, by the probabilities that Bayes gives."""
    n, m = 40, 10
    x = np.linspace(-1, 2, n)
    source, target = np.exp(-(x**2) / 2), np.exp(-((x - 1) ** 2) / 2)
    found = importance.discriminator_weights(m * target / (m * target + n * source), n, m, 1e9)
    np.testing.assert_allclose(found, target / source / (target / source).mean(), rtol=1e-12)
    cut = importance.discriminator_weights(m * target / (m * target + n * source), n, m, 2.0)
    np.testing.assert_allclose(cut, np.minimum(target / source, 2) / np.minimum(target / source, 2).mean(), rtol=1e-12)
    sure = importance.discriminator_weights(np.array([1.0, 0.0, 0.5]), 3, 3, 100.0)
    np.testing.assert_allclose(sure, np.array([100, 0, 1]) * 3 / 101)
    np.testing.assert_array_equal(importance.discriminator_weights(np.zeros(4), 4, 4, 100.0), np.ones(4))
