"""Operations on samples of any kind, tensors or texts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs, Tokens, map_inputs
from metatransfer.functional.meta.update_rules import Params

__all__ = ["as_precise", "concatenated", "embed_tasks", "sample_axes"]


def concatenated(first: Inputs, second: Inputs, dim: int) -> Inputs:
    """Concatenates two sets of samples along axis ``dim``, from 0; shorter texts are padded to the longer length."""
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


def embed_tasks(network: Callable[[Any], Tensor], x: Inputs) -> Tensor:
    """Features ``(T, N, E)`` of samples ``(T, N, *shape)`` or texts, computed in one pass."""
    return torch.unflatten(network(map_inputs(lambda part: part.flatten(0, 1), x)), 0, sample_axes(x, 2))


def as_precise(x: Inputs, params: Params) -> Inputs:
    """Converts samples to the floating-point type of the parameters; integers (tokens) are returned unchanged."""
    dtype = next(iter(params.values())).dtype
    return pytree.tree_map(lambda part: part.to(dtype) if part.is_floating_point() else part, x)  # type: ignore[no-any-return]
