"""Outputs of methods: logits or values as one tensor, or distributions as any structure of tensors."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_scores

Outputs: TypeAlias = Any
"""``(T, Q, C)`` logits, ``(T, Q, D)`` values, tuples or dicts of tensors, or an object such as a distribution."""


def map_tensors(function: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    """Applies a function to all tensors of outputs; other objects, such as distributions, are returned unchanged."""
    return pytree.tree_map_only(Tensor, function, outputs)


def checked_pair(method: object, returned: Any) -> tuple[Tensor, Outputs]:  # noqa: ANN401
    """What ``training_loss`` of a method returned; raises an error unless it is a pair of a scalar and the outputs."""
    pair = returned if isinstance(returned, tuple | list) and len(returned) == 2 else (None, None)
    if not isinstance(pair[0], Tensor) or pair[0].dim():
        kind = f"a tensor of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(
            f"training_loss of {type(method).__name__} must return the pair (loss, outputs) with a scalar loss, but "
            f"returned {kind}: return the outputs too, since the training accuracy is computed from them."
        )
    return pair[0], pair[1]


def widened(outputs: Outputs) -> Outputs:
    """Detached outputs in float32, for metrics."""
    return map_tensors(lambda part: part.detach().float() if part.is_floating_point() else part.detach(), outputs)


def point_of(outputs: Outputs) -> Tensor:
    """The point prediction: a tensor itself, the ``mean`` of a distribution."""
    point = outputs if isinstance(outputs, Tensor) else getattr(outputs, "mean", None)
    if not isinstance(point, Tensor):
        raise UserError(
            f"outputs of type {type(outputs).__name__} have no mean that could be scored: define score(outputs, "
            "targets) and loss(outputs, targets) in the method."
        )
    return point


def default_score(outputs: Outputs, targets: Tensor) -> Tensor:
    """Accuracy or mean squared error of each task, see :func:`~metatransfer.functional.losses.episode_scores`."""
    return episode_scores(point_of(outputs), targets)
