"""Output layers that are fitted to the embeddings of support sets, for all tasks of a meta-batch at once."""

import torch.nn.functional as F
from torch import Tensor

from metatransfer.functional.meta.prototypes import class_members

__all__ = ["fitted_cosine_heads", "fitted_linear_heads"]


def fitted_linear_heads(support: Tensor, labels: Tensor, ways: int, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    r"""Softmax regression by full-batch gradient descent from 0, :math:`z = xW^\top + b`.

    Args:
        support: embeddings ``(T, S, E)``.
        labels: ``(T, S)`` int64.
        ways: number of classes ``W``.
        steps: number of gradient steps.
        lr: learning rate of the mean cross-entropy.

    Returns:
        Weights ``(T, W, E)`` and biases ``(T, W, 1)``.
    """
    weight, bias = support.new_zeros(len(support), ways, support.shape[2]), support.new_zeros(len(support), ways)
    targets = class_members(labels, ways).to(support.dtype)
    for _ in range(steps):
        residual = _residual(support @ weight.mT + bias.unsqueeze(1), targets)
        weight, bias = weight - lr * residual.mT @ support, bias - lr * residual.sum(1)
    return weight, bias.unsqueeze(-1)


def fitted_cosine_heads(
    support: Tensor, labels: Tensor, ways: int, steps: int, lr: float, scale: float = 10.0
) -> tuple[Tensor, Tensor]:
    r"""Softmax regression on scaled cosines by full-batch gradient descent, :math:`z_k = s\cos(x, w_k)`.

    All classes start at the same weights, the direction of the mean of the support set, which holds no labels.

    Args:
        support: embeddings ``(T, S, E)``.
        labels: ``(T, S)`` int64.
        ways: number of classes ``W``.
        steps: number of gradient steps.
        lr: learning rate of the mean cross-entropy.
        scale: initial value of :math:`s`, which is learned too.

    Returns:
        Weights ``(T, W, E)`` and the factor, repeated for each class, ``(T, W, 1)``.
    """
    x = F.normalize(support, dim=-1)
    weight = F.normalize(x.mean(1, keepdim=True), dim=-1).expand(-1, ways, -1)
    factor, targets = x.new_full((len(x), 1), scale), class_members(labels, ways).to(x.dtype)
    for _ in range(steps):
        unit = F.normalize(weight, dim=-1)
        cosines = x @ unit.mT
        residual = _residual(factor.unsqueeze(1) * cosines, targets)
        by_unit = factor.unsqueeze(1) * (residual.mT @ x)
        tangent = by_unit - (by_unit * unit).sum(-1, keepdim=True) * unit
        weight = weight - lr * tangent / weight.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        factor = factor - lr * (residual * cosines).sum((1, 2)).unsqueeze(1)
    return weight, factor.unsqueeze(1).expand(-1, ways, -1)


def _residual(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy by the logits ``(T, S, W)``."""
    return (logits.softmax(-1) - targets) / logits.shape[1]
