"""Linear systems whose matrices are known only by their products."""

from collections.abc import Callable

import torch
from torch import Tensor

from metatransfer.functional.meta.update_rules import Params

__all__ = ["conjugate_gradient"]


@torch.no_grad()
def conjugate_gradient(product: Callable[[Params], Params], right: Params, steps: int) -> Params:
    r"""Solves :math:`A_i x_i = b_i` for each of ``T`` tasks by conjugate gradients (Hestenes, Stiefel 1952).

    It starts from 0. A task stops early where a direction has no positive curvature :math:`p^\top A p`, as happens if
    its matrix is not positive definite.

    Args:
        product: ``product(p)``: the products :math:`A_i p_i` with symmetric matrices.
        right: :math:`b`, tensors ``(T, *shape)`` by name.
        steps: number of products.

    Returns:
        :math:`x`, by the same names.
    """
    found = {name: torch.zeros_like(value) for name, value in right.items()}
    residual, direction = right, right
    square = _inner(right, right)
    for _ in range(steps):
        image = product(direction)
        curvature = _inner(direction, image)
        # 0 / 0 where a task is solved
        length = torch.where(curvature > 0, square / curvature.clamp(min=torch.finfo(curvature.dtype).tiny), 0.0)
        found = _plus(found, length, direction)
        residual = _plus(residual, -length, image)
        before, square = square, _inner(residual, residual)
        share = torch.where(length > 0, square / before.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
        direction = _plus(residual, share, direction)
    return found


def _inner(one: Params, two: Params) -> Tensor:
    """Inner products ``(T,)``."""
    return torch.stack([(value * two[name]).flatten(1).sum(1) for name, value in one.items()]).sum(0)


def _plus(one: Params, factor: Tensor, two: Params) -> Params:
    """``one + factor * two`` with a factor ``(T,)``."""
    return {name: value + factor.view(-1, *[1] * (value.dim() - 1)) * two[name] for name, value in one.items()}
