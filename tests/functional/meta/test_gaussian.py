"""Gaussian log-densities against scipy, and variances against a loop."""

from __future__ import annotations

import torch
from scipy.stats import multivariate_normal

from metatransfer.functional import class_variances, diagonal_log_densities, full_log_densities


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_scipy(queries, means, covariance_of):
    def densities(task, way):
        normal = multivariate_normal(means[task, way].numpy(), covariance_of(task, way).numpy())
        return torch.from_numpy(normal.logpdf(queries[task].numpy()))

    tasks, ways = means.shape[:2]
    return torch.stack([torch.stack([densities(task, way) for way in range(ways)], 1) for task in range(tasks)])


def test_diagonal_densities_are_those_of_scipy():
    queries, means = draw(2, 5, 4) + 10, draw(2, 3, 4, seed=1) + 10
    variances = draw(2, 3, 4, seed=2).exp()
    expected = by_scipy(queries, means, lambda task, way: torch.diag(variances[task, way]))
    torch.testing.assert_close(diagonal_log_densities(queries, means, variances), expected, rtol=1e-9, atol=1e-9)
    expected = by_scipy(queries, means, lambda task, way: torch.diag(variances[0, 0]))
    torch.testing.assert_close(diagonal_log_densities(queries, means, variances[0, 0]), expected, rtol=1e-9, atol=1e-9)


def test_full_densities_are_those_of_scipy():
    queries, means = draw(2, 5, 4), draw(2, 3, 4, seed=1)
    factor = draw(4, 4, seed=2).tril(-1) + torch.diag(draw(4, seed=3).exp())
    covariance = torch.linalg.inv(factor @ factor.T)
    expected = by_scipy(queries, means, lambda task, way: (covariance + covariance.T) / 2)
    torch.testing.assert_close(full_log_densities(queries, means, factor), expected, rtol=1e-8, atol=1e-8)


def test_variances_are_shrunk_towards_the_prior():
    support, labels = draw(2, 6, 4), torch.tensor([[0, 1, 0, 0, 2, 1]]).expand(2, -1)  # uneven shots, one of them 1
    prior, weight = draw(4, seed=1).exp(), torch.tensor(2.5, dtype=torch.float64)
    found = class_variances(support, labels, 3, prior, weight)
    for task in range(2):
        for way in range(3):
            own = support[task][labels[task] == way]
            expected = (2.5 * prior + (own - own.mean(0)).square().sum(0)) / (2.5 + len(own))
            torch.testing.assert_close(found[task, way], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0, 2], prior * 2.5 / 3.5)  # one sample


def test_half_precision_does_not_overflow():
    far, one = torch.full((1, 2, 4), 300.0, dtype=torch.float16), torch.ones(4, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found in (diagonal_log_densities(far, -far, one), full_log_densities(far, -far, torch.diag(one))):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, torch.full((1, 2, 2), -2 * 600.0**2 - 3.6757541))
