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
    r"""The identity, whose gradient is reversed: :math:`R(x) = x`, :math:`\partial R/\partial x = -\lambda I`.

    Ganin et al. 2016 (1505.07818). What comes after it is minimised as always; what comes before it, the features,
    maximises the same loss with the weight :math:`\lambda`.

    Args:
        x: any shape, floating.
        strength: :math:`\lambda`.

    Returns:
        ``x`` itself in value.
    """
    found: Tensor = _Reversed.apply(x, strength) if torch.is_grad_enabled() else x
    return found
