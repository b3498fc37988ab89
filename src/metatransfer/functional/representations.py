"""How similar the features of two networks, layers or training states are on the same samples, and their weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metatransfer.errors import UserError
from metatransfer.functional.transferability import gram

__all__ = ["linear_cka", "relative_change", "svcca"]


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    r"""Linear centred kernel alignment (CKA, Kornblith et al. 2019, 1905.00414).

    .. math:: \frac{\lVert Y^\top X\rVert_F^2}{\lVert X^\top X\rVert_F\,\lVert Y^\top Y\rVert_F}

    of centred features. It does not change under rotations, shifts and a common scale of either side. Matrices of
    samples by samples are only formed if there are fewer samples than features.

    Args:
        x: ``(n, D)`` features.
        y: ``(n, E)`` features of the same samples.
        unbiased: use the unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, JMLR;
            Nguyen et al. 2021, 2010.15327). The plain value is too high for few samples: random features of more
            dimensions than samples have nearly 1. The unbiased one may be slightly negative.

    Returns:
        A scalar, at most 1 for equal representations, in float32 or the wider precision of the features.

    Raises:
        UserError: the numbers of samples differ, there are too few, or all samples have the same features; without
            bias, also if all pairs of samples are equally similar, where the estimate of a side with itself is 0.
    """
    x, y = _centred("linear_cka", x, y, least=4 if unbiased else 2)
    own, other, both = products = [_squared_product(one, two) for one, two in ((x, x), (y, y), (x, y))]
    if unbiased:
        k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741 - names of the paper
        pairs = ((k, k), (l, l), (k, l))
        own, other, both = (_without_bias(found, *pair) for found, pair in zip(products, pairs, strict=True))
        least_known = 64 * torch.finfo(x.dtype).eps
        if bool(own <= least_known * products[0]) or bool(other <= least_known * products[1]):
            raise UserError(
                "linear_cka(unbiased=True) is not defined for features in which all pairs of samples are equally "
                "similar: give more samples, or set unbiased=False."
            )
    return both / (own.sqrt() * other.sqrt())


def _without_bias(product: Tensor, k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """The unbiased Hilbert-Schmidt independence criterion of linear kernels, up to a factor that cancels.

    ``k`` and ``l`` ``(n,)`` are the diagonals of both kernels. Without them, the rows of both sum to minus the
    diagonal, as features are centred.
    """
    n = len(k)
    trace, sums, mixed = product - k @ l, k.sum() * l.sum(), k @ l
    return trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed


def _squared_product(x: Tensor, y: Tensor) -> Tensor:
    """The squared Frobenius norm of ``y.T @ x``, which is also the sum of ``(x @ x.T) * (y @ y.T)``."""
    if len(x) < max(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (gram(x) if x is y else y.T @ x).square().sum()


def svcca(x: Tensor, y: Tensor, kept: float = 0.99) -> Tensor:
    r"""Mean canonical correlation of the leading directions (SVCCA, Raghu et al. 2017, 1706.05806).

    Of each side the fewest singular directions are kept that explain the share ``kept`` of the variance. The mean is
    over the canonical correlations :math:`\rho_i` of both subspaces, as many as the smaller one has directions.

    Args:
        x: ``(n, D)`` features.
        y: ``(n, E)`` features of the same samples. There should be several times as many samples as directions:
            otherwise every correlation is high.
        kept: share of the variance, above 0, at most 1.

    Returns:
        A scalar from 0 to 1, in float32 or the wider precision of the features.

    Raises:
        UserError: the numbers of samples differ, there are too few, all samples have the same features, or ``kept`` is
            not a share.
    """
    if not 0 < kept <= 1:
        raise UserError(f"svcca: kept must be a share above 0 and at most 1, but is {kept}.")
    first, second = (_leading(one, kept) for one in _centred("svcca", x, y, least=2))
    correlations: Tensor = torch.linalg.svdvals(first.T @ second)
    return correlations.clamp(max=1).mean()


def relative_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    r"""How far weights moved, :math:`\lVert w_1 - w_0\rVert / \lVert w_0\rVert` over all tensors together.

    Args:
        before: tensors by name.
        after: tensors of the same names and shapes.

    Returns:
        0 for equal weights; infinite if all weights were 0 and changed.
    """
    pairs = [(value.detach().double(), after[name].detach().double()) for name, value in before.items()]
    moved = sum(float((new - old).square().sum()) for old, new in pairs)
    size = sum(float(old.square().sum()) for old, _ in pairs)
    return math.sqrt(moved / size) if size else math.inf if moved else 0.0


def _leading(x: Tensor, kept: float) -> Tensor:
    """Orthonormal scores ``(n, k)`` of centred samples along their leading directions."""
    vectors, values, _ = torch.linalg.svd(x, full_matrices=False)
    values = values[values > values[0] * max(x.shape) * torch.finfo(x.dtype).eps]
    shares = values.square().cumsum(0) / values.square().sum()
    count = int((shares < kept * (1 - 4 * torch.finfo(x.dtype).eps)).sum()) + 1
    leading: Tensor = vectors[:, : min(count, len(values))]
    return leading


def _centred(name: str, x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Checks both sides, and returns them in float32 or wider with column means of 0."""
    shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < least or not x.numel() or not y.numel():
        raise UserError(
            f"{name} needs two matrices of features (N, D) and (N, E) of the same {least} or more samples, but got "
            f"{shapes}: flatten other axes, and give the samples in the same order."
        )
    if not (x.is_floating_point() and y.is_floating_point() and _largest(x).isfinite() and _largest(y).isfinite()):
        raise UserError(f"{name} needs finite floating-point features, but got {x.dtype} and {y.dtype} of {shapes}.")
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    first, second = (one.to(wide) - one.to(wide).mean(0) for one in (x, y))
    for given, centred in ((x, first), (y, second)):
        if bool(_largest(centred) <= 64 * torch.finfo(wide).eps * _largest(given)):
            raise UserError(f"{name}: all samples have the same features, so that there is nothing to compare.")
    return first, second


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value, in one pass; NaN if there is one."""
    low, high = x.detach().aminmax()
    return torch.maximum(-low, high)
