"""Gradients as inputs: of losses inside of methods, and as features of learned update rules."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["descended", "gradient_features", "gradient_of"]


def gradient_of(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The gradient of ``loss``, a scalar, at ``point``; differentiable, and also possible in inference mode.

    If ``point`` and the sum in the loss run over tasks, so that each task depends on its own part, the result has the
    gradient of every task.
    """
    found: Tensor = torch.func.grad(loss)(point)
    return found


def descended(loss: Callable[[Tensor], Tensor], start: Tensor, rate: float | Tensor, steps: int) -> Tensor:
    r"""The end of ``steps`` steps :math:`z \leftarrow z - \alpha\nabla\mathcal L(z)`, see :func:`gradient_of`."""
    for _ in range(steps):
        start = start - rate * gradient_of(loss, start)
    return start


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
