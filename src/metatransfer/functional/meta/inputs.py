"""Samples of any kind, joined along an axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs, Tokens
from metatransfer.functional.meta.update_rules import Params


def concatenated(first: Inputs, second: Inputs, dim: int) -> Inputs:
    """Two sets of samples of the same kind as one.

    Args:
        first: ``(..., *shape)`` or :class:`~metatransfer.Tokens`.
        second: likewise; texts may have another padded length, the shorter ones are padded further.
        dim: the axis of the samples, from 0.

    Returns:
        Both, along the axis.
    """
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        return torch.cat([first, second], dim)
    assert isinstance(second, Tokens)
    length = max(part.ids.shape[-1] for part in (first, second))

    def padded(x: Tensor) -> Tensor:
        return F.pad(x, (0, length - x.shape[-1]))

    return Tokens(*(torch.cat([padded(a), padded(b)], dim) for a, b in zip(first, second, strict=True)))


def sample_axes(x: Inputs, count: int) -> torch.Size:
    """The leading ``count`` axes of samples, e.g. ``(T, N)``."""
    return (x if isinstance(x, Tensor) else x.ids).shape[:count]


def as_precise(x: Inputs, params: Params) -> Inputs:
    """Samples in the floating-point type of the parameters; integers (tokens) are returned unchanged."""
    dtype = next(iter(params.values())).dtype
    return pytree.tree_map(lambda part: part.to(dtype) if part.is_floating_point() else part, x)  # type: ignore[no-any-return]
