"""Optimal transport between labelled samples."""

import torch
from torch import Tensor

from metatransfer.errors import UserError
from metatransfer.functional.domain.validation import fixed_order


def dataset_distance(source: Tensor, source_y: Tensor, target: Tensor, target_y: Tensor) -> Tensor:
    r"""Optimal transport dataset distance (OTDD, Alvarez-Melis and Fusi 2020, 2002.02923), with exact transport.

    .. math:: \min_\pi \sqrt{\frac1n\sum_i \lVert s_i-t_{\pi(i)}\rVert^2 + W_2^2\big(y_i, y'_{\pi(i)}\big)},\qquad
              W_2^2(c, c') = \lVert\mu_c-\mu_{c'}\rVert^2 + \lVert\sigma_c-\sigma_{c'}\rVert^2

    over permutations :math:`\pi`. Classes are compared as Gaussians with diagonal covariances, so the two tasks may
    have different classes. It is 0 for equal samples only: two samples of one distribution have a positive distance,
    which falls slowly with their number. The time is cubic in it.

    Args:
        source: ``(n, D)`` features.
        source_y: ``(n,)`` integer labels.
        target: ``(m, D)`` features. The larger side is reduced to the size of the other, always to the same samples.
        target_y: ``(m,)`` integer labels.

    Returns:
        A float64 scalar in units of the features.

    Raises:
        UserError: the shapes do not fit, or features are not finite.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    x, others = _rows(source, source_y), _rows(target, target_y)
    if x.shape[1] != others.shape[1]:
        raise UserError(
            f"dataset_distance needs the same features on both sides, but got {tuple(source.shape)} and "
            f"{tuple(target.shape)}: compute both with the same network."
        )
    count = min(len(x), len(others))
    x, others = (one[fixed_order(len(one))[:count]] if len(one) > count else one for one in (x, others))
    cost = torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return cost[rows, columns].mean().sqrt()


def _rows(x: Tensor, y: Tensor) -> Tensor:
    """Each sample followed by mean and deviation of its class, float64 ``(n, 3 D)``: their distances are the costs."""
    if x.dim() != 2 or not len(x) or y.shape != x.shape[:1] or y.is_floating_point() or not x.isfinite().all():
        raise UserError(
            f"dataset_distance needs finite features (N, D) and integer labels (N,), but got {tuple(x.shape)} and "
            f"{y.dtype} labels of shape {tuple(y.shape)}."
        )
    wide = x.detach().to("cpu", torch.float64)
    place: Tensor = y.cpu().unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    sizes = torch.bincount(place).double().unsqueeze(1)
    means = wide.new_zeros(len(sizes), wide.shape[1]).index_add_(0, place, wide) / sizes
    apart = (wide - means[place]).square()
    deviations = (torch.zeros_like(means).index_add_(0, place, apart) / sizes).sqrt()
    return torch.cat([wide, means[place], deviations[place]], 1)
