"""Differentiable discrepancies of two samples: MMD, correlation alignment, disagreement of classifiers.

All are computed in float32 or wider, also under autocast, as squared distances overflow half precision.
"""

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

    Kernels and scale follow deep adaptation networks (Long et al. 2015, 1502.02791), with the mean of the kernels
    instead of their sum, so that the value stays below 2. Memory is :math:`O((n+m)^2 + (n+m)d)`.

    Args:
        source: ``(n, d)``.
        target: ``(m, d)``.
        multipliers: :math:`u`; fastest if each is a power of two times the next, which needs one exponential.
        scale: :math:`\gamma`, without gradient; defaults to the median of the squared distances of all pairs of
            different samples.
        unbiased: leave out pairs of a sample with itself. A single value may then be negative; the biased estimate is
            never negative, but too large on average.

    Returns:
        A scalar.

    Raises:
        UserError: the samples have different features or are fewer than two, or a multiplier is not positive.
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
    r"""Joint maximum mean discrepancy of several layers (Long et al. 2017, 1605.06636).

    This is :func:`mmd` with the product of the kernels, :math:`k(x, y) = \prod_\ell k_\ell(x^{(\ell)}, y^{(\ell)})`.

    Args:
        source: features ``(n, d_l)`` of each layer.
        target: features ``(m, d_l)`` of each layer.
        multipliers: as in :func:`mmd`, for all layers.
        scales: one for each layer, as in :func:`mmd`.
        unbiased: as in :func:`mmd`.

    Returns:
        A scalar.

    Raises:
        UserError: the numbers of layers or samples differ, or as in :func:`mmd`.
    """
    scales = [None] * len(source) if scales is None else scales
    if not len(source) == len(target) == len(scales) > 0:
        raise UserError(
            f"the joint discrepancy needs the same layers of both domains and a scale for each, but got {len(source)} "
            f"source layers, {len(target)} target layers and {len(scales)} scales."
        )
    if not multipliers or not all(0 < one < math.inf for one in multipliers):
        raise UserError(f"multipliers must be one or more positive numbers, but are {list(multipliers)}.")
    pairs = [_checked(mine, other) for mine, other in zip(source, target, strict=True)]
    sizes = {(len(mine), len(other)) for mine, other in pairs}
    if len(sizes) > 1:
        raise UserError(f"all layers must have the same samples, but their numbers are {sorted(sizes)}.")
    with torch.autocast(source[0].device.type, enabled=False):
        kernel: Tensor | None = None
        for pair, scale in zip(pairs, scales, strict=True):
            one = _kernel(torch.cat(pair), multipliers, scale)
            kernel = one if kernel is None else kernel * one
        assert kernel is not None
        return _contrast(kernel, len(source[0]), unbiased)


def _contrast(kernel: Tensor, n: int, unbiased: bool) -> Tensor:
    """The mean of the kernel within each domain minus twice the mean between domains."""
    m = len(kernel) - n
    own, other, between = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if unbiased:  # a sample's kernel with itself is 1
        within = (own.sum() - n) / (n * (n - 1)) + (other.sum() - m) / (m * (m - 1))
    else:
        within = own.mean() + other.mean()
    return within - 2 * between.mean()


def _kernel(x: Tensor, multipliers: Sequence[float], scale: float | Tensor | None) -> Tensor:
    """The mean of the Gaussian kernels, ``(N, N)``."""
    center = x.detach().mean(0)  # reduces rounding errors of the distances
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
    """Squared distances of all pairs of rows; 0 on the diagonal."""
    norms = x.square().sum(1)
    distances = torch.addmm(norms.unsqueeze(1) + norms, x, x.T, alpha=-2)
    # negative rounding errors are subtracted as constants, as a clamp would remove the derivative
    distances = distances - distances.detach().clamp(max=0)
    return distances.fill_diagonal_(0)


def _median_scale(distances: Tensor, center: Tensor) -> Tensor:
    """The median off the diagonal; the mean if most samples coincide, and 1 if all do."""
    count = len(distances)
    pairs = distances.flatten()[1:].view(count - 1, count + 1)[:, :-1].flatten()
    eps, smallest = torch.finfo(distances.dtype).eps, torch.finfo(distances.dtype).tiny ** 0.5
    mean = pairs.mean()
    # smaller distances are rounding errors
    floor = 64 * eps * (mean + eps * center.square().sum()) + smallest
    median = pairs.median()
    return torch.where(median > floor, median, torch.where(mean > floor, mean, 1.0))


def linear_mmd(source: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance of the means :math:`\lVert\bar s-\bar t\rVert^2` of ``(n, d)`` and ``(m, d)``, a scalar.

    This is the biased :func:`mmd` with a linear kernel.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = _checked(source, target)
        return (source.mean(0) - target.mean(0)).square().sum()


def coral(source: Tensor, target: Tensor) -> Tensor:
    r"""Distance of the covariances :math:`\lVert C_s - C_t\rVert_F^2 / (4d^2)` (Sun and Saenko 2016, 1607.01719).

    Of samples ``(n, d)`` and ``(m, d)``; a scalar. The cost is :math:`O((n+m)d\min(d, n+m))`. With fewer samples than
    features no covariance is formed: for centred and weighted samples :math:`Z` and signs :math:`S` with
    :math:`C_s - C_t = Z^\top S Z`,

    .. math:: \lVert C_s - C_t\rVert_F^2 = \sum_{ij} S_{ii} S_{jj} (ZZ^\top)_{ij}^2
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
    r"""Disagreement of two classifiers :math:`\overline{\lvert p-q\rvert}` (Saito et al. 2018, 1712.02560), a scalar.

    The mean over samples and classes of their probabilities ``(N, C)`` for the same samples.

    Raises:
        UserError: the shapes differ, or there are no samples.
    """
    if p.shape != q.shape or p.numel() == 0:
        raise UserError(
            "classifier_discrepancy needs the probabilities of two classifiers for the same samples and classes, "
            f"tensors (N, C), but got {tuple(p.shape)} and {tuple(q.shape)}."
        )
    wide = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    return (p.to(wide) - q.to(wide)).abs().mean()


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Checks both samples and converts them to float32 or wider."""
    shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
    if source.dim() != 2 or target.dim() != 2:
        raise UserError(f"source and target must be features (n, d) and (m, d), but are {shapes}: flatten other axes.")
    if source.shape[1] != target.shape[1]:
        raise UserError(
            f"source and target must have the same features, but have {source.shape[1]} and {target.shape[1]}: take "
            "both from the same layer."
        )
    if min(len(source), len(target)) < 2:
        raise UserError(
            f"source and target need at least two samples each, but have {len(source)} and {len(target)}: raise the "
            "batch size, or drop the last batch."
        )
    if not (source.is_floating_point() and target.is_floating_point()):
        raise UserError(f"source and target must be floating point, but are {source.dtype} and {target.dtype}.")
    wide = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(wide), target.to(wide)
