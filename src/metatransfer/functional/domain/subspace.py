"""Subspaces shared by two domains, in closed form, on float64 arrays.

Samples are rows: ``(n, d)`` of the source, ``(m, d)`` of the target, centred by the caller.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]
_SMALL = 1e-8  # radians; smaller angles count as 0


def geodesic_flow_factor(source: Array, target: Array) -> Array:
    r"""A factor of the geodesic flow kernel, in closed form (Gong et al. 2012, CVPR).

    .. math:: G = \int_0^1 \Phi(t)\Phi(t)^\top\,dt = F F^\top

    over the geodesic :math:`\Phi(t)` between two subspaces. With the principal angles :math:`\theta_i`, the source's
    principal vectors :math:`a_i` and the directions :math:`b_i` that lead from them to the target's,
    :math:`\Phi_i(t) = a_i\cos t\theta_i + b_i\sin t\theta_i`, and each angle gives a block of two rows and columns with
    the entries :math:`\tfrac12 + \tfrac{\sin 2\theta}{4\theta}`, :math:`\tfrac{1-\cos 2\theta}{4\theta}` and
    :math:`\tfrac12 - \tfrac{\sin 2\theta}{4\theta}`.

    The subspaces are orthonormal columns ``(d, k)``. Inner products of samples times the result ``F``, ``(d, 2k)``, are
    those of the kernel.
    """
    left, cosines, right = np.linalg.svd(source.T @ target)
    along = source @ left
    rest = target @ right.T - along * cosines
    sines = np.linalg.norm(rest, axis=0)  # precise for small angles, where the cosine is not
    angles = np.arctan2(sines, cosines)
    away = rest / np.where(sines > _SMALL, sines, 1.0)
    turned = angles > _SMALL
    double = 2 * np.where(turned, angles, 1.0)
    first = np.where(turned, 0.5 * (1 + np.sin(double) / double), 1.0)
    mixed = np.where(turned, np.sin(double / 2) ** 2 / double, 0.0)  # 1 - cos would cancel
    last = np.where(turned, 0.5 * (1 - np.sin(double) / double), 0.0)
    # Cholesky of each block of two
    corner = np.sqrt(first)
    below = mixed / corner
    end = np.sqrt(np.maximum(last - below**2, 0.0))
    return np.concatenate([along * corner + away * below, away * end], axis=1)


def discrepancy_matrix(labels: NDArray[np.int64] | None, guesses: NDArray[np.int64] | None, n: int, m: int) -> Array:
    r"""The matrix ``M`` for which :math:`\mathrm{tr}(Z^\top M Z)` is the distance between the means of the domains.

    .. math:: \lVert \bar z_s - \bar z_t\rVert^2 + \sum_c \lVert \bar z_s^{(c)} - \bar z_t^{(c)}\rVert^2

    The marginal term of TCA (Pan et al. 2011); with labels also the conditional terms of JDA (Long et al. 2013, ICCV),
    where the marginal term is weighted by the number of classes, as in the code of its authors.

    Args:
        labels: ``(n,)`` of the source, or ``None``.
        guesses: ``(m,)`` pseudo-labels of the target, or ``None``.
        n: number of source samples.
        m: number of target samples.

    Returns:
        ``(n + m, r)``: a factor ``E`` with :math:`M = E E^\top`, of norm 1.
    """
    classes = np.unique(labels) if labels is not None else np.zeros(1, np.int64)
    columns = [np.sqrt(len(classes)) * np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])]
    if labels is not None and guesses is not None:
        for one in classes:
            own, guessed = (labels == one).astype(np.float64), (guesses == one).astype(np.float64)
            column = np.concatenate([own / own.sum(), -guessed / max(1.0, guessed.sum())])
            columns.append(column)
    factor = np.stack(columns, axis=1)
    norm = np.linalg.norm(factor.T @ factor)  # the norm of M
    found: Array = factor / np.sqrt(norm)
    return found


def transfer_components(x: Array, factor: Array, count: int, regularization: float) -> Array:
    r"""Directions of large variance in which the domains differ little.

    .. math:: \max_W\ \mathrm{tr}\bigl(W^\top X^\top H X W\bigr) \quad\text{such that}\quad
              W^\top(X^\top M X + \lambda I)W = I

    with the centring matrix :math:`H`: the linear kernel of TCA and JDA in its primal form. The cost is cubic in the
    smaller of the numbers of samples and features.

    Args:
        x: ``(n + m, d)``, source then target.
        factor: ``E`` with :math:`M = EE^\top`, see :func:`discrepancy_matrix`.
        count: number of directions.
        regularization: :math:`\lambda`.

    Returns:
        ``(d, count)``, the best first.
    """
    basis = np.linalg.qr(x.T)[0] if len(x) < x.shape[1] else None
    inside = x if basis is None else x @ basis
    apart = inside.T @ factor
    cost = apart @ apart.T + regularization * np.eye(inside.shape[1])
    centred = inside - inside.mean(0)
    size = inside.shape[1]
    found: Array = linalg.eigh(centred.T @ centred, cost, subset_by_index=[size - count, size - 1])[1][:, ::-1]
    return found if basis is None else basis @ found


def correlation_alignment(source: Array, target: Array, regularization: float) -> Array:
    r"""Maps source to target covariance: :math:`C_s^{-1/2} C_t^{1/2}` (CORAL, Sun et al. 2016, 1511.05547).

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.
        regularization: added to the diagonals of both covariances; the paper takes 1.

    Returns:
        ``(d, d)`` matrix that source samples are multiplied by.
    """

    def power(x: Array, exponent: float) -> Array:
        centred = x - x.mean(0)
        covariance = centred.T @ centred / max(1, len(x) - 1) + regularization * np.eye(x.shape[1])
        values, vectors = np.linalg.eigh(covariance)
        found: Array = (vectors * values**exponent) @ vectors.T
        return found

    return power(source, -0.5) @ power(target, 0.5)
