"""Multi-class support vector machines of many tasks at once, differentiable."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metatransfer.functional.meta.prototypes import class_members

__all__ = ["svm_dual"]

ROUNDINGS = 500
"""A task is solved when its mean complementarity, relative to C, is this many rounding errors."""
PROXIMITY = 1e-9
"""Least weight of the bounds in a step, relative to the kernel."""
MAX_STEPS = 60
"""Far more than a convex problem takes (10 to 20)."""
STEP_SHARE = 0.995
"""Share of the step to the boundary that is taken."""


def svm_dual(x: Tensor, labels: Tensor, num_ways: int, strength: float) -> Tensor:
    r"""Solves the multi-class linear SVM of Crammer and Singer 2001 for each task, without an intercept.

    .. math:: \min_W \frac12\lVert W\rVert^2 + C\sum_n \xi_n \quad\text{with}\quad
              (w_{y_n} - w_k)^\top x_n \ge 1 - [k = y_n] - \xi_n

    in its dual form, as in MetaOptNet (Lee et al. 2019, 1904.03758, Eq. 9 and 10):

    .. math:: \min_\alpha \frac12\sum_k \alpha_k^\top K\alpha_k - \sum_n \alpha_{n y_n} \quad\text{with}\quad
              K = XX^\top,\quad \alpha_{nk} \le C\,[k = y_n],\quad \sum_k \alpha_{nk} = 0

    by a primal-dual interior-point method, in float64 until the solution is exact (10 to 20 steps). The constraints
    couple the classes only within a sample. A step therefore needs :math:`W` systems of size :math:`S` per task instead
    of one of size :math:`SW`, and those of all classes and tasks are factorised at once.

    The gradient with respect to ``x`` is exact, by implicit differentiation of the optimality conditions at the
    solution; it can be taken once. Where a constraint is active with a multiplier of 0, the solution has no derivative;
    one of its one-sided derivatives, or a value between them, is used.

    Args:
        x: samples ``(T, S, E)``.
        labels: ``(T, S)`` int64 in ``0 .. num_ways - 1``. A class that a task does not have takes no part in it.
        num_ways: number of classes :math:`W`.
        strength: :math:`C`, positive: how much margin errors cost.

    Returns:
        :math:`\alpha`, ``(T, S, W)``, in float32 or better. The weights are :math:`w_k = \sum_n \alpha_{nk} x_n`.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        # Apple's accelerator has no float64
        exact = x.to(wide if x.device.type == "mps" else torch.float64)
        own = class_members(labels, num_ways).to(exact.dtype)
        found: Tensor = _Dual.apply(exact @ exact.mT, own, strength)
        return found.to(wide)


class _Dual(torch.autograd.Function):
    r"""The solution :math:`\alpha` as a function of the kernel matrices ``(T, S, S)``."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, own: Tensor, strength: float) -> Tensor:  # noqa: ANN401
        point = _solved(kernel, own, strength)
        ctx.save_for_backward(kernel, own, *point)
        return point.alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        r"""The gradient :math:`-\sum_k z_k\alpha_k^\top`, from the conditions :math:`K\alpha + \lambda + \nu = e`.

        ``z`` solves the system of a step of the interior-point method for the gradient with respect to ``alpha``.
        """
        kernel, own, *values = ctx.saved_tensors
        point = _Point(*values)
        change = _Newton(kernel, own, point).solved(gradient, torch.zeros_like(gradient[..., :1]))
        return -change @ point.alpha.mT, None, None


class _Point(NamedTuple):
    """An interior point: dual variables, slacks of their bounds, and multipliers of these, each ``(T, S, W)``."""

    alpha: Tensor
    slack: Tensor
    multiplier: Tensor

    def complementarity(self, count: Tensor) -> Tensor:
        """The mean product of slack and multiplier ``(T, 1, 1)``, 0 at the solution."""
        return (self.slack * self.multiplier).sum((1, 2), keepdim=True) / count


class _Newton:
    """The linear systems of a step: ``(K + D_k) d_k + v = r_k`` with given sums of ``d`` over the classes."""

    def __init__(self, kernel: Tensor, own: Tensor, point: _Point) -> None:
        scale = kernel.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=1)[:, None, None]
        # at least as much as a singular kernel needs to be factorised, which changes the steps but not where they end
        least = PROXIMITY if kernel.dtype == torch.float64 else PROXIMITY**0.5
        weights = (point.multiplier / point.slack).clamp(least * scale, scale / torch.finfo(kernel.dtype).eps)
        self.systems = kernel.unsqueeze(1) + torch.diag_embed(weights.mT)  # (T, W, S, S)
        factors = torch.linalg.cholesky_ex(self.systems)[0]
        self.inverses = torch.cholesky_inverse(factors) * own.amax(1)[..., None, None]
        self.shared = torch.linalg.cholesky_ex(self.inverses.sum(1))[0]

    def solved(self, right: Tensor, sums: Tensor) -> Tensor:
        """Solves for ``d`` ``(T, S, W)``, and once more for what rounding left.

        Args:
            right: ``(T, S, W)``.
            sums: ``(T, S, 1)``.
        """
        found, shift = self._once(right, sums)
        left = right - _product(self.systems, found) - shift
        return found + self._once(left, sums - found.sum(-1, keepdim=True))[0]

    def _once(self, right: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        free = _product(self.inverses, right)
        shift = torch.cholesky_solve(free.sum(-1, keepdim=True) - sums, self.shared)
        return free - _product(self.inverses, shift.expand_as(right)), shift


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Products ``(T, S, W)`` of a matrix ``(T, W, S, S)`` and a vector for each class."""
    return (matrices @ vectors.mT.unsqueeze(-1)).squeeze(-1).mT


def _start(kernel: Tensor, own: Tensor, strength: float) -> _Point:
    """A point that satisfies all constraints strictly, and the conditions of optimality but for complementarity."""
    present = own.amax(1, keepdim=True)
    others = present.sum(-1, keepdim=True) - 1
    # of a single class, alpha is 0
    alpha = strength / 2 * (own * (others > 0) - (present - own) / others.clamp(min=1))
    margins = own - kernel @ alpha
    lowest = margins.masked_fill(present == 0, torch.inf).amin(-1, keepdim=True)
    # classes that a task does not have are solved already
    slack = torch.where(present > 0, strength * own - alpha, 1.0)
    return _Point(alpha, slack, (margins - lowest + 1) * present)


def _solved(kernel: Tensor, own: Tensor, strength: float) -> _Point:
    """Follows the predictor-corrector steps of Mehrotra 1992 until every task is solved."""
    point = _start(kernel, own, strength)
    count = own.amax(1, keepdim=True).sum(-1, keepdim=True) * kernel.shape[-1]
    tolerance = ROUNDINGS * torch.finfo(kernel.dtype).eps * strength
    for _ in range(MAX_STEPS):
        unsolved = point.complementarity(count) > tolerance
        if not unsolved.any():
            break
        moved = _step(kernel, own, point, count)
        # each task stops for itself, so that it does not depend on the others of its meta-batch
        point = _Point(*(torch.where(unsolved, new, old) for new, old in zip(moved, point, strict=True)))
    return point


def _step(kernel: Tensor, own: Tensor, point: _Point, count: Tensor) -> _Point:
    """One step of each task."""
    alpha, slack, multiplier = point
    newton, present = _Newton(kernel, own, point), own.amax(1, keepdim=True)
    right, sums = own - kernel @ alpha, -alpha.sum(-1, keepdim=True)
    change = newton.solved(right, sums)
    more = multiplier * (change / slack - 1)
    share = _share(point, change, more)
    now = point.complementarity(count)
    ahead = _Point(alpha, slack - share * change, multiplier + share * more).complementarity(count)
    target = ((ahead / now) ** 3 * now + change * more) * present - multiplier * slack
    change = newton.solved(right - multiplier - target / slack, sums)
    more = (target + multiplier * change) / slack
    share = (STEP_SHARE * _share(point, change, more)).clamp(max=1)
    return _Point(alpha + share * change, slack - share * change, multiplier + share * more)


def _share(point: _Point, change: Tensor, more: Tensor) -> Tensor:
    """The share ``(T, 1, 1)`` of a step that reaches the boundary."""
    limits = [torch.where(of < 0, -at / of, torch.inf) for at, of in ((point.slack, -change), (point.multiplier, more))]
    return torch.cat(limits, -1).amin((1, 2), keepdim=True).clamp(max=1 / STEP_SHARE)
