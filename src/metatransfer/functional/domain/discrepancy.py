"""How far apart two samples are: maximum mean discrepancy, correlation alignment, disagreement of classifiers.

Each is a scalar that can be differentiated any number of times by both samples, computed in float32 or wider also under
autocast: squared distances overflow half precision, and a difference of means of kernels would be all rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metatransfer.errors import UserError

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd(
    source: Tensor,
    target: Tensor,
    multipliers: Sequence[float] = MULTIPLIERS,
    *,
    scale: float | Tensor | None = None,
    unbiased: bool = True,
) -> Tensor:
    r"""Squared maximum mean discrepancy with several Gaussian kernels (Gretton et al. 2012, JMLR 13).

    .. math:: \overline{k(s_i, s_j)} + \overline{k(t_i, t_j)} - 2\,\overline{k(s_i, t_j)},\qquad
              k(x, y) = \frac1U\sum_{u} e^{-\lVert x-y\rVert^2/(u\gamma)}

    The kernels and their scale are those of deep adaptation networks (Long et al. 2015, 1502.02791), with the mean of
    the kernels in place of their sum: the value stays below 2, however many there are. One
    Gram matrix holds all distances: the memory is :math:`O((n+m)^2 + (n+m)d)`.

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.
        multipliers: :math:`u`; where each is a power of two times the next, all kernels come from one exponential.
        scale: :math:`\gamma`, a constant to the derivative; the median of the squared distances of all pairs of
            different samples where ``None``.
        unbiased: leave out the pairs of a sample with itself: the mean over draws is then that of the distributions,
            and a single value may be negative. The other estimate is never negative, and too large.

    Returns:
        A scalar.

    Raises:
        UserError: samples that do not fit each other, fewer than two of them, or a multiplier that is not above 0.
    """
    return joint_mmd([source], [target], multipliers, scales=[scale], unbiased=unbiased)


def joint_mmd(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    multipliers: Sequence[float] = MULTIPLIERS,
    *,
    scales: Sequence[float | Tensor | None] | None = None,
    unbiased: bool = True,
) -> Tensor:
    r"""Joint maximum mean discrepancy of several layers: :func:`mmd` with the product of their kernels.

    .. math:: k(x, y) = \prod_\ell k_\ell(x^{(\ell)}, y^{(\ell)})

    Long et al. 2017, 1605.06636.

    Args:
        source: of each layer, ``(n, d_l)``.
        target: of each layer, ``(m, d_l)``.
        multipliers: as in :func:`mmd`, of all layers.
        scales: of each layer, as in :func:`mmd`.
        unbiased: as in :func:`mmd`.

    Returns:
        A scalar.

    Raises:
        UserError: layers of different numbers or samples, and what :func:`mmd` refuses.
    """
    scales = [None] * len(source) if scales is None else scales
    if not len(source) == len(target) == len(scales) > 0:
        raise UserError(
            f"the joint discrepancy needs the same layers of both domains and a scale for each, but got {len(source)} "
            f"of the source, {len(target)} of the target and {len(scales)} scales."
        )
    if not multipliers or not all(0 < one < math.inf for one in multipliers):
        raise UserError(f"multipliers must be one or more numbers above 0, but are {list(multipliers)}.")
    pairs = [_checked(mine, other) for mine, other in zip(source, target, strict=True)]
    sizes = {(len(mine), len(other)) for mine, other in pairs}
    if len(sizes) > 1:
        raise UserError(f"all layers must hold the same samples, but their numbers are {sorted(sizes)}.")
    with torch.autocast(source[0].device.type, enabled=False):
        kernel: Tensor | None = None
        for pair, scale in zip(pairs, scales, strict=True):
            one = _kernel(torch.cat(pair), multipliers, scale)
            kernel = one if kernel is None else kernel * one
        assert kernel is not None
        return _contrast(kernel, len(source[0]), unbiased)


def _contrast(kernel: Tensor, n: int, unbiased: bool) -> Tensor:
    """The mean of the kernel within each domain less twice that between them."""
    m = len(kernel) - n
    own, other, between = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if unbiased:  # a sample's kernel with itself is 1
        within = (own.sum() - n) / (n * (n - 1)) + (other.sum() - m) / (m * (m - 1))
    else:
        within = own.mean() + other.mean()
    return within - 2 * between.mean()


def _kernel(x: Tensor, multipliers: Sequence[float], scale: float | Tensor | None) -> Tensor:
    """The mean of the Gaussian kernels, ``(N, N)``."""
    center = x.detach().mean(0)  # distances do not depend on it, their rounding does
    distances = _squared_distances(x - center)
    if scale is None:
        gamma = _median_scale(distances.detach(), center)
    else:
        gamma = torch.as_tensor(scale, dtype=x.dtype, device=x.device).detach()
    ladder = sorted(multipliers, reverse=True)
    power = torch.exp(distances * (-1 / (ladder[0] * gamma)))
    total = power
    for before, here in itertools.pairwise(ladder):
        doublings = math.log2(before / here)
        if doublings.is_integer():
            for _ in range(int(doublings)):
                power = power.square()
        else:
            power = torch.exp(distances * (-1 / (here * gamma)))
        total = total + power
    return total / len(ladder)


def _squared_distances(x: Tensor) -> Tensor:
    """Of all pairs of rows, by the expansion of the square; 0 on the diagonal."""
    norms = x.square().sum(1)
    distances = torch.addmm(norms.unsqueeze(1) + norms, x, x.T, alpha=-2)
    # rounding below 0 is taken off as a constant: a clamp would take the derivative with it
    distances = distances - distances.detach().clamp(max=0)
    return distances.fill_diagonal_(0)


def _median_scale(distances: Tensor, center: Tensor) -> Tensor:
    """The median off the diagonal; the mean where most samples coincide, and 1 where all do."""
    count = len(distances)
    pairs = distances.flatten()[1:].view(count - 1, count + 1)[:, :-1].flatten()
    eps, smallest = torch.finfo(distances.dtype).eps, torch.finfo(distances.dtype).tiny ** 0.5
    mean = pairs.mean()
    # below this a distance is nothing but rounding: of its own sum, or of the samples that it was taken of
    floor = 64 * eps * (mean + eps * center.square().sum()) + smallest
    median = pairs.median()
    return torch.where(median > floor, median, torch.where(mean > floor, mean, 1.0))


def linear_mmd(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance of the means :math:`\lVert\bar s-\bar t\rVert^2`: :func:`mmd` with the linear kernel, biased.

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.

    Returns:
        A scalar.

    Raises:
        UserError: as :func:`mmd`.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = _checked(source, target)
        return (source.mean(0) - target.mean(0)).square().sum()


def coral(source: Tensor, target: Tensor) -> Tensor:
    r"""Distance of the covariances :math:`\lVert C_s - C_t\rVert_F^2 / (4d^2)` (Sun and Saenko 2016, 1607.01719).

    The cost is :math:`O((n+m)d\min(d, n+m))`: with fewer samples than features no covariance is ever formed, as with
    :math:`C_s - C_t = Z^\top S Z` of samples :math:`Z`, centred and weighted, and signs :math:`S`,

    .. math:: \lVert C_s - C_t\rVert_F^2 = \sum_{ij} S_{ii} S_{jj} (ZZ^\top)_{ij}^2

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.

    Returns:
        A scalar.

    Raises:
        UserError: as :func:`mmd`.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = _checked(source, target)
        mine, other = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (source, target))
        size = source.shape[1]
        if len(mine) + len(other) < size:
            joint = torch.cat([mine, other])
            squares = (joint @ joint.T).square()
            n = len(mine)
            distance = squares[:n, :n].sum() + squares[n:, n:].sum() - 2 * squares[:n, n:].sum()
        else:
            distance = (mine.T @ mine - other.T @ other).square().sum()
        return distance / (4 * size**2)


def classifier_discrepancy(p: Tensor, q: Tensor) -> Tensor:
    r"""Disagreement of two classifiers :math:`\overline{\lvert p-q\rvert}` (Saito et al. 2018, 1712.02560).

    Args:
        p: ``(N, C)`` probabilities of one.
        q: ``(N, C)`` probabilities of the other for the same samples.

    Returns:
        A scalar, the mean over samples and classes.

    Raises:
        UserError: different shapes, or no samples.
    """
    if p.shape != q.shape or p.numel() == 0:
        raise UserError(
            "the discrepancy of classifiers needs the probabilities of both for the same samples and classes, but got "
            f"{tuple(p.shape)} and {tuple(q.shape)}: give two tensors (N, C)."
        )
    wide = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    return (p.to(wide) - q.to(wide)).abs().mean()


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or wider.

    Raises:
        UserError: samples that do not fit each other, or fewer than two of them.
    """
    shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
    if source.dim() != 2 or target.dim() != 2:
        raise UserError(f"source and target must be features (n, d) and (m, d), but are {shapes}: flatten the rest.")
    if source.shape[1] != target.shape[1]:
        raise UserError(
            f"source and target must have the same features, but have {source.shape[1]} and {target.shape[1]}: take "
            "both from the same layer."
        )
    if min(len(source), len(target)) < 2:
        raise UserError(
            f"source and target need two samples each or more, but have {len(source)} and {len(target)}: raise the "
            "batch size, or drop the last batch."
        )
    if not (source.is_floating_point() and target.is_floating_point()):
        raise UserError(f"source and target must be floating point, but are {source.dtype} and {target.dtype}.")
    wide = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(wide), target.to(wide)
