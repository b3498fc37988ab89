"""Gradient reversal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:  # noqa: ANN401
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:  # noqa: ANN401
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    r"""The identity with a reversed gradient: :math:`R(x) = x`, :math:`\partial R/\partial x = -\lambda I`.

    Ganin et al. 2016 (1505.07818). Layers after it minimise the loss, layers before it maximise :math:`\lambda` times
    the loss.

    Args:
        x: float tensor of any shape.
        strength: :math:`\lambda`.

    Returns:
        A tensor with the values of ``x``.
    """
    found: Tensor = _Reversed.apply(x, strength) if torch.is_grad_enabled() else x
    return found
