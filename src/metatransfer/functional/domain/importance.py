r"""Importance weights of source samples: estimates of :math:`p_t(x)/p_s(x)` on float64 arrays.

Samples are rows: ``(n, d)`` of the source, ``(m, d)`` of the target. Kernels are Gaussian,
:math:`k(x, y) = e^{-\lVert x-y\rVert^2 / (2\sigma^2)}` with the bandwidth :math:`\sigma`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from metatransfer.errors import UserError

Array = NDArray[np.float64]
_LEAST_KERNEL = 1e-30  # at a distance of 12 bandwidths; avoids divisions by 0 and log(0)
_NEARLY, _STEPS = 0.99, 200  # part of the way to the boundary; most steps


def gaussian_kernel(x: Array, y: Array, bandwidth: float) -> Array:
    """Gaussian kernel ``(n, m)`` of all pairs of ``x`` ``(n, d)`` and ``y`` ``(m, d)``."""
    found: Array = cdist(x, y, "sqeuclidean")
    found *= -0.5 / bandwidth**2
    np.exp(found, out=found)
    return found


def median_bandwidth(x: Array, limit: int = 1000) -> float:
    """Median distance of different samples of ``x`` ``(n, d)``.

    At most ``limit`` samples, spread evenly, are used. If most samples coincide the result is the mean distance, and 1
    if all do.
    """
    some = x[np.linspace(0, len(x) - 1, min(limit, len(x))).astype(np.int64)]
    distances = cdist(some, some)[np.triu_indices(len(some), 1)]
    return float(np.median(distances)) or float(distances.mean()) or 1.0


def effective_sample_size(weights: Array) -> float:
    r"""Effective sample size :math:`(\sum w)^2 / \sum w^2` (Kish 1965) of weights ``(n,)``, from 1 to ``n``."""
    scaled = weights / weights.max()
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def discriminator_weights(probability: Array, n: int, m: int, limit: float) -> Array:
    r"""Weights from a domain classifier: :math:`w = \frac{n}{m}\,\frac{p}{1-p}` (Bickel et al. 2009, JMLR 10).

    ``probability`` ``(n,)`` is that of the source samples to belong to the target, from a classifier trained on ``n``
    source and ``m`` target samples; ``limit`` is the largest ratio. Returns ``(n,)`` weights of mean 1; all 1 if all
    ratios are 0.
    """
    ratio = np.minimum(n / m * probability / np.maximum(1 - probability, np.finfo(np.float64).tiny), limit)
    mean = ratio.mean()
    return ratio / mean if mean > 0 else np.ones_like(ratio)


def kernel_mean_matching(
    kernel: Array, similarity: Array, limit: float = 1000.0, slack: float | None = None, tolerance: float = 1e-9
) -> Array:
    r"""Weights that match the means of source and target in the kernel's feature space (Huang et al. 2006, NIPS 19).

    .. math:: \min_w\ \tfrac12 w^\top K w - \kappa^\top w \quad\text{such that}\quad 0 \le w_i \le B,\
              \lvert\bar w - 1\rvert \le \epsilon

    Solved by a primal-dual interior-point method (Mehrotra 1992, SIAM J. Optim. 2(4)) to a given duality gap, with one
    Cholesky decomposition of ``(n, n)`` in each of 10 to 30 steps.

    Args:
        kernel: ``K`` ``(n, n)`` of the source samples.
        similarity: :math:`\kappa_i = \frac nm\sum_j k(s_i, t_j)`, ``(n,)``.
        limit: ``B``, above 1.
        slack: :math:`\epsilon`, above 0; defaults to :math:`(\sqrt n-1)/\sqrt n`.
        tolerance: duality gap at which to stop, relative to the objective.

    Returns:
        ``(n,)``.

    Raises:
        UserError: ``limit`` is not above 1, ``slack`` is not positive, or the tolerance is not reached.
    """
    n = len(kernel)
    slack = 1 - 1 / np.sqrt(n) if slack is None else slack
    if limit <= 1 or slack <= 0:
        raise UserError(
            f"kernel mean matching needs limit > 1 and slack > 0, so that the weights can have a mean of 1, but they "
            f"are {limit} and {slack}."
        )
    lowest, highest = max(0.0, n * (1 - slack)), min(n * limit, n * (1 + slack))
    w = np.full(n, 0.5 * (lowest + highest) / n)
    # slacks of w >= 0, w <= limit, sum(w) >= lowest and sum(w) <= highest; updated, as differences would cancel
    rest = np.concatenate([w, limit - w, np.full(2, 0.5 * (highest - lowest))])
    gradient = kernel @ w - similarity
    y = max(1.0, float(np.abs(gradient).max())) / rest  # multipliers of these constraints
    for _ in range(_STEPS):
        missing = gradient - _adjoint(y)
        w = rest[:n]
        gap = float(rest @ y) + float(np.abs(missing) @ (w + 1))
        if gap <= tolerance * max(1.0, abs(0.5 * float(w @ (gradient - similarity)))):
            return w
        d_rest, d_y = _newton(kernel, rest, y, missing)
        length = min(1.0, _NEARLY * _longest(rest, d_rest, y, d_y))
        rest, y = rest + length * d_rest, y + length * d_y
        gradient = kernel @ rest[:n] - similarity
    raise UserError(
        f"kernel mean matching did not reach the tolerance {tolerance:g} in {_STEPS} steps: raise tolerance or slack."
    )


def _adjoint(y: Array) -> Array:
    n = (len(y) - 2) // 2
    found: Array = y[:n] - y[n:-2] + (y[-2] - y[-1])
    return found


def _longest(rest: Array, d_rest: Array, y: Array, d_y: Array) -> float:
    """The step length at which the first constraint or multiplier becomes 0."""
    values, steps = np.concatenate([rest, y]), np.concatenate([d_rest, d_y])
    falling = steps < 0
    return float((-values[falling] / steps[falling]).min()) if falling.any() else np.inf


def _newton(kernel: Array, rest: Array, y: Array, missing: Array) -> tuple[Array, Array]:
    """Mehrotra's predictor-corrector step for the slacks and their multipliers."""
    n, ratio = len(kernel), y / rest
    matrix = kernel.copy()
    jitter = 1e-13 * n  # keeps a singular kernel positive definite despite rounding
    matrix.flat[:: n + 1] += ratio[:n] + ratio[n:-2] + jitter
    factor = linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    ones = linalg.cho_solve(factor, np.ones(n), check_finite=False)
    both = ratio[-2] + ratio[-1]  # the constraints on the sum add a matrix of rank one

    def solve(wanted: Array) -> tuple[Array, Array]:
        right = _adjoint(wanted / rest - y) - missing
        step = linalg.cho_solve(factor, right, check_finite=False)
        total = step.sum() / (1 + both * ones.sum())  # the sum of the next line, without its cancellation
        step = step - ones * (both * total)
        change = np.concatenate([step, -step, [total, -total]])
        return change, wanted / rest - y - ratio * change

    first, first_y = solve(np.zeros_like(y))
    length = min(1.0, _longest(rest, first, y, first_y))
    now = rest @ y
    ahead = (rest + length * first) @ (y + length * first_y)
    center = (ahead / now) ** 3 * now / len(y)
    return solve(center - first * first_y)


def kliep(source: Array, target: Array, tolerance: float = 1e-7) -> Array:
    r"""KLIEP: a density ratio from kernels that maximises the likelihood of the target (Sugiyama et al. 2008, NIPS 20).

    .. math:: \max_\alpha\ \frac1m\sum_j \log\sum_l \alpha_l k(t_j, c_l) \quad\text{such that}\quad
              \frac1n\sum_i\sum_l \alpha_l k(s_i, c_l) = 1,\ \alpha \ge 0

    With :math:`\beta_l = \alpha_l\overline{k(s, c_l)}` this is a convex problem, solved by a primal-dual interior-point
    method. It stops when the largest slope of the likelihood along a single kernel, minus 1, which bounds the distance
    to the maximum, is within the tolerance.

    Args:
        source: ``(n, L)`` kernels of source samples and centers.
        target: ``(m, L)`` kernels of target samples and centers.
        tolerance: of the mean log-likelihood.

    Returns:
        :math:`\alpha`, ``(L,)``; see :func:`kliep_weights`.

    Raises:
        UserError: the tolerance is not reached.
    """
    means = np.maximum(source, _LEAST_KERNEL).mean(0)
    ratios = np.maximum(target, _LEAST_KERNEL) / means
    m, count = ratios.shape
    beta = np.full(count, 1 / count)
    z = np.ones(count)  # multipliers of beta >= 0 in: minimise sum(beta) - mean(log(ratios @ beta))
    for _ in range(_STEPS):
        scaled = ratios / (ratios @ beta)[:, None]
        slope = scaled.mean(0)
        if slope.max() * beta.sum() - 1 <= tolerance:
            alpha: Array = beta / beta.sum() / means
            return alpha
        hessian = scaled.T @ scaled / m
        center = 0.1 * float(beta @ z) / count
        hessian.flat[:: count + 1] += z / beta
        step = linalg.solve(hessian, slope - 1 + center / beta, assume_a="pos", check_finite=False)
        d_z = center / beta - z - z / beta * step
        beta, z = _shortened(ratios, beta, z, step, d_z, center)
    raise UserError(
        f"KLIEP did not reach the tolerance {tolerance:g} in {_STEPS} steps: raise the bandwidth, or tolerance."
    )


def kliep_weights(kernels: Array, alpha: Array) -> Array:
    """The density ratio ``(n,)`` of :func:`kliep`, of mean 1 over the source, from kernels ``(n, L)`` at centers."""
    found: Array = np.maximum(kernels, _LEAST_KERNEL) @ alpha
    return found


def kliep_bandwidth(
    source: Array, target: Array, centers: NDArray[np.int64], candidates: Sequence[float], fold: NDArray[np.int64]
) -> float:
    """Chooses the bandwidth of :func:`kliep` by the cross-validated likelihood of target samples.

    Kernels centred on held-out samples are left out, as they would favour small bandwidths.

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.
        centers: ``(L,)`` indices of the target samples that are centers, from at least two folds.
        candidates: bandwidths to choose from.
        fold: ``(m,)`` fold of each target sample.

    Returns:
        The best candidate; the first of equals.
    """
    scores = []
    for bandwidth in candidates:
        mine, other = (gaussian_kernel(x, target[centers], bandwidth) for x in (source, target))
        score = 0.0
        for one in np.unique(fold):
            held, kept = fold == one, fold[centers] != one
            alpha = kliep(mine[:, kept], other[~held][:, kept])
            score += float(np.log(kliep_weights(other[held][:, kept], alpha)).sum())
        scores.append(score)
    return float(candidates[int(np.argmax(scores))])


def _shortened(ratios: Array, beta: Array, z: Array, step: Array, d_z: Array, center: float) -> tuple[Array, Array]:
    """Shortens a step until it is feasible and reduces the residual of the optimality conditions."""

    def residual(beta: Array, z: Array) -> float:
        slope = (ratios / (ratios @ beta)[:, None]).mean(0)
        return float(np.linalg.norm(np.concatenate([1 - slope - z, beta * z - center])))

    now, length = residual(beta, z), min(1.0, _NEARLY * _longest(beta, step, z, d_z))
    while length > 1e-10:
        new = beta + length * step, z + length * d_z
        if residual(*new) <= (1 - 0.01 * length) * now:
            return new
        length /= 2
    return beta, z
