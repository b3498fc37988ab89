"""Gradients as inputs: of losses inside of methods, and as features of learned update rules."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gradient_features", "gradient_of"]


def gradient_of(loss: Callable[..., Tensor], point: Tensor, *inputs: Tensor) -> Tensor:
    """The gradient of ``loss(point, *inputs)``, a scalar, with respect to ``point``; differentiable.

    It is also computed in inference mode, where it is a constant. If the sum in the loss runs over tasks, each of which
    depends on its own part of ``point``, the result has the gradient of every task.
    """
    with torch.inference_mode(False):
        # tensors that were made in inference mode take part in no gradient, so they are copied
        point, *others = (part.clone() if part.is_inference() else part for part in (point, *inputs))
        found: Tensor = torch.func.grad(loss)(point, *others)
        return found


def gradient_features(values: Tensor, limit: float = 10.0) -> Tensor:
    r"""Magnitude and sign of gradients or losses of any scale (Andrychowicz et al. 2016, 1606.04474, appendix A).

    .. math:: g \mapsto \begin{cases}\bigl(\tfrac{\log|g|}{p},\ \mathrm{sgn}(g)\bigr) & |g|\ge e^{-p}\\
              (-1,\ e^p g) & \text{otherwise}\end{cases}

    Args:
        values: :math:`g` of any shape.
        limit: :math:`p`; smaller magnitudes than :math:`e^{-p}` count as 0 gradually.

    Returns:
        ``(*shape, 2)``.
    """
    size = values.abs().clamp(min=math.exp(-limit)).log() / limit
    return torch.stack([size, (values * math.exp(limit)).clamp(-1, 1)], -1)
