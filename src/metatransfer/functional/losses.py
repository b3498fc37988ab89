"""Losses and scores of episodes: integer targets are class labels, float targets are regressed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.errors import UserError

__all__ = ["episode_loss", "episode_losses", "episode_scores", "is_regression", "mask_absent_classes"]


def is_regression(targets: Tensor) -> bool:
    """Whether ``targets`` (any shape) are floats, i.e. values to regress, rather than class labels."""
    return targets.is_floating_point()


def _same_shape(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:  # broadcasting would compare all pairs
        raise UserError(
            f"regression needs outputs and targets of the same shape, but got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}: targets need the shape (T, Q, D), and the method num_outputs=D."
        )


def episode_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Mean loss over all samples and tasks.

    Cross-entropy :math:`-\frac1N\sum_i \log\mathrm{softmax}(z_i)_{y_i}` for labels, squared error
    :math:`\frac1{ND}\sum_{i,d}(z_{id}-y_{id})^2` for float targets. Tasks are averaged, not summed, so that
    the outer learning rate does not depend on the number of tasks in a meta-batch.

    Args:
        outputs: ``(..., C)`` logits, or ``(..., D)`` predicted values.
        targets: ``(...)`` int64 labels, or ``(..., D)`` floats.

    Returns:
        A scalar, in float32 if the outputs are in half precision.
    """
    wide = outputs.float() if outputs.dtype.itemsize < 4 else outputs
    if is_regression(targets):
        _same_shape(outputs, targets)
        return F.mse_loss(wide, targets.to(wide.dtype))
    return F.cross_entropy(wide.flatten(0, -2), targets.flatten())


def episode_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss ``(T,)`` of each task; arguments as in :func:`episode_loss`, ``(T, Q, ...)``."""
    if is_regression(targets):
        _same_shape(outputs, targets)
        return (outputs - targets).square().flatten(1).mean(1)
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def episode_scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """The score ``(T,)`` of each task, float32: its accuracy in [0, 1] (labels) or mean squared error (floats).

    The accuracy is NaN if an output is NaN or infinite, since the largest of them is no prediction.

    Args:
        outputs: ``(T, Q, C)`` logits or ``(T, Q, D)`` predicted values.
        targets: ``(T, Q)`` or ``(T, Q, D)``.
    """
    if is_regression(targets):
        _same_shape(outputs, targets)
        return (outputs.float() - targets.float()).square().flatten(1).mean(1)
    right = (outputs.argmax(-1) == targets).float()
    return right.masked_fill(~outputs.float().logsumexp(-1).isfinite(), torch.nan).mean(1)


def mask_absent_classes(outputs: Any, support_y: Tensor) -> Any:  # noqa: ANN401
    """Masks the logits of classes that are missing from the support set of a task.

    Args:
        outputs: ``(T, Q, C)`` logits. Outputs of a regression, and several tensors, are returned unchanged.
        support_y: ``(T, S)`` labels, or float targets.

    Returns:
        ``(T, Q, C)`` with the lowest finite number for absent classes, so that their probability and gradient are 0.
    """
    if is_regression(support_y) or not isinstance(outputs, Tensor):
        return outputs
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    present = (support_y.unsqueeze(-1) == classes).any(1)
    return outputs.masked_fill(~present.unsqueeze(1), torch.finfo(outputs.dtype).min)
