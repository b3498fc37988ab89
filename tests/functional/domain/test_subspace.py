"""Subspaces of two domains, against integrals, loops and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, linalg

from metatransfer.adapters.domain import SubspaceAlignment
from metatransfer.functional.domain import subspace


def bases(seed=0, d=9, k=3):
    generator = np.random.default_rng(seed)
    return tuple(np.linalg.qr(generator.normal(size=(d, k)))[0] for _ in range(2))


def flow(source, target, t):
    """The point t of the geodesic, by the matrix exponential of Edelman, Arias, Smith 1998, Theorem 2.3."""
    rest = np.eye(len(source)) - source @ source.T
    left, sines, right = np.linalg.svd(rest @ target @ np.linalg.inv(source.T @ target), full_matrices=False)
    angles = np.arctan(sines)
    return source @ right.T @ np.diag(np.cos(t * angles)) + left @ np.diag(np.sin(t * angles))


@pytest.mark.parametrize("seed", range(3))
def test_the_geodesic_flow_kernel_is_the_integral(seed):
    source, target = bases(seed)
    factor = subspace.geodesic_flow_factor(source, target)
    integral = integrate.quad_vec(lambda t: flow(source, target, t) @ flow(source, target, t).T, 0, 1, epsabs=1e-13)[0]
    np.testing.assert_allclose(factor @ factor.T, integral, atol=1e-11)


def test_the_flow_between_equal_subspaces_is_their_projection():
    source, _ = bases()
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    factor = subspace.geodesic_flow_factor(source, source @ turn)
    np.testing.assert_allclose(factor @ factor.T, source @ source.T, atol=1e-10)


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 3e-8, 1e-7, 1e-6, 1e-3, 1.0, np.pi / 2])
def test_small_and_right_angles_are_precise(angle):
    source = np.eye(4)[:, :1]
    target = np.cos(angle) * np.eye(4)[:, :1] + np.sin(angle) * np.eye(4)[:, 1:2]
    factor = subspace.geodesic_flow_factor(source, target)
    grid, weights = np.polynomial.legendre.leggauss(40)
    points = [np.array([[np.cos(angle * (g + 1) / 2)], [np.sin(angle * (g + 1) / 2)], [0.0], [0.0]]) for g in grid]
    expected = sum(w / 2 * p @ p.T for w, p in zip(weights, points, strict=True))
    # the cosine alone would lose half of the digits of a small angle; the smallest count as 0
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=0, atol=1e-13 if angle > 1e-8 else 1e-8)


def test_principal_directions_are_those_of_the_covariance():
    x = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    x -= x.mean(0)
    found = SubspaceAlignment(3).fit(x).target_map_
    vectors = np.linalg.eigh(x.T @ x)[1]
    for one, other in zip(found.T, vectors.T[::-1], strict=False):
        assert abs(one @ other) == pytest.approx(1)
    assert (np.take_along_axis(found, np.abs(found).argmax(0)[None], 0) > 0).all()


@pytest.mark.parametrize(("smallest", "within"), [(1e-2, 1e-12), (1e-4, 1e-12), (1e-9, 1e-9)])
def test_principal_directions_are_as_precise_as_those_of_singular_vectors(smallest, within):
    """Also of directions so weak that the covariance has forgotten them."""
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(200, 12))
    left = np.linalg.qr(samples - samples.mean(0))[0]  # centred
    right = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    values = np.geomspace(1.0, smallest, 12)
    found = SubspaceAlignment(12).fit((left * values) @ right.T).target_map_
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found * right, axis=0)), 1.0, atol=1e-12)
    away = found * np.sign(np.sum(found * right, axis=0)) - right
    assert np.abs(away).max() < within


@pytest.mark.parametrize("conditional", [False, True])
def test_the_discrepancy_is_the_distance_of_the_means(conditional):
    generator = np.random.default_rng(0)
    n, m = 7, 5
    z = generator.normal(size=(n + m, 2))
    labels, guesses = np.array([0, 1, 2, 0, 1, 2, 0]), np.array([0, 0, 1, 1, 0])  # nobody is thought to be a 2
    factor = subspace.discrepancy_matrix(labels if conditional else None, guesses if conditional else None, n, m)
    matrix = factor @ factor.T
    assert np.linalg.norm(matrix) == pytest.approx(1)
    expected = (3 if conditional else 1) * np.sum((z[:n].mean(0) - z[n:].mean(0)) ** 2)
    for label in range(3) if conditional else ():
        mine, other = z[:n][labels == label].mean(0), z[n:][guesses == label]
        expected += np.sum((mine - (other.mean(0) if len(other) else 0)) ** 2)
    scale = sum(
        np.outer(v, v) for v in factor.T
    )  # the matrix up to its norm: the ratio of two points is that of the formula
    other = generator.normal(size=(n + m, 2))
    second = (3 if conditional else 1) * np.sum((other[:n].mean(0) - other[n:].mean(0)) ** 2)
    for label in range(3) if conditional else ():
        mine, theirs = other[:n][labels == label].mean(0), other[n:][guesses == label]
        second += np.sum((mine - (theirs.mean(0) if len(theirs) else 0)) ** 2)
    ratio = np.trace(z.T @ scale @ z) / np.trace(other.T @ scale @ other)
    assert ratio == pytest.approx(expected / second)


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_transfer_components_solve_the_whole_problem(shape):
    """Also where there are fewer samples than features, and the problem is solved in what they span."""
    x = np.random.default_rng(0).normal(size=shape)
    n = shape[0] // 3
    factor = subspace.discrepancy_matrix(None, None, n, shape[0] - n)
    found = subspace.transfer_components(x, factor, 3, 0.5)
    cost = x.T @ factor @ factor.T @ x + 0.5 * np.eye(shape[1])
    spread = x.T @ (np.eye(shape[0]) - 1 / shape[0]) @ x
    values, vectors = linalg.eigh(spread, cost)
    np.testing.assert_allclose(found.T @ cost @ found, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.diag(found.T @ spread @ found), values[::-1][:3], rtol=1e-9)
    np.testing.assert_allclose(np.abs(found), np.abs(vectors[:, ::-1][:, :3]), atol=1e-8)


def test_coral_gives_the_source_the_targets_covariance():
    generator = np.random.default_rng(0)
    source = generator.normal(size=(200, 5)) @ generator.normal(size=(5, 5))
    target = generator.normal(size=(300, 5)) @ generator.normal(size=(5, 5)) + 3
    mapped = source @ subspace.correlation_alignment(source, target, 0.0)
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(target.T), rtol=1e-8, atol=1e-10)
    map_ = subspace.correlation_alignment(source, target, 1.0)
    eye = np.eye(5)
    expected = linalg.fractional_matrix_power(np.cov(source.T) + eye, -0.5) @ linalg.sqrtm(np.cov(target.T) + eye)
    np.testing.assert_allclose(map_, expected, rtol=1e-8, atol=1e-10)
