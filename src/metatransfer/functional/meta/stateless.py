"""Networks as pure functions of their parameters, with an explicit BatchNorm policy."""

import math
import operator
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs
from metatransfer.errors import UserError
from metatransfer.functional.meta.batch_norm import batch_norm
from metatransfer.functional.meta.replicas import Unused, replica
from metatransfer.functional.meta.threads import UNFUSED_ATTENTION, WITHOUT_CUDNN

BatchNormPolicy = Literal["transductive", "support", "running"]
"""Which statistics BatchNorm uses, in the inner loop and on the queries.

``transductive``: those of each batch, so that queries are normalised by themselves (MAML);
``support``: those of the task's support set, also for the queries; ``running``: the running averages.
"""


class Forward(Protocol):
    """A network as a function of its parameters."""

    def __call__(self, params: Mapping[str, Tensor], x: Inputs, statistics_rows: int | None = None) -> Any:  # noqa: ANN401
        """The outputs for ``x``; BatchNorm takes its statistics from the leading ``statistics_rows`` or all rows."""


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers inside ``module`` by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def stateless(module: nn.Module, *, running: bool = False) -> Forward:
    """Turns ``module`` into a pure function of its parameters, which leaves the module untouched.

    Every call runs a copy of the module's structure, so that several threads may call it, and a block that is computed
    again later (``torch.utils.checkpoint`` with ``use_reentrant=False``) finds the parameters of its call.

    Args:
        module: any network.
        running: normalise by the running averages instead of batch statistics.

    Returns:
        A function of ``(params, x, statistics_rows=None)``; parameters missing from ``params`` are taken from
        ``module``.

    Raises:
        UserError: ``running`` with a layer that has no running averages, or a layer that changes its weights in the
            forward pass or has none yet.
    """
    for name, layer in module.named_modules():
        _check_layer(name, layer, running)
    steered = {layer for layer in module.modules() if isinstance(layer, _BatchNorm | _InstanceNorm)}
    # other layers (spectral_norm) may write to their buffers, so they get copies
    buffers = [
        buffer
        for layer in module.modules()
        if layer not in steered
        for buffer in layer._buffers.values()
        if buffer is not None
    ]
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())

    unchecked = [module]

    def forward(params: Mapping[str, Tensor], x: Inputs, statistics_rows: int | None = None) -> Any:  # noqa: ANN401
        check: AbstractContextManager[Any] = nullcontext()
        if unchecked:  # the first call is enough
            unchecked.clear()
            check = Unused({id(operator.attrgetter(name)(module)): name for name in params})
            params = {name: value.view_as(value) for name, value in params.items()}
        own = replica(module, params, buffers)
        for layer in own.modules():
            function = _function_of(layer, running, statistics_rows)
            if function is not None:
                layer.forward = function
        on_cudnn = recurrent and pytree.tree_leaves(x)[0].is_cuda
        # fused attention is used unless a tensor requires a gradient, which under vmap none ever seems to
        with check, UNFUSED_ATTENTION, WITHOUT_CUDNN if on_cudnn else nullcontext():
            return own(x)

    return forward


def _check_layer(name: str, layer: nn.Module, running: bool) -> None:
    if running and isinstance(layer, _BatchNorm) and layer.running_mean is None:
        raise UserError(
            f"batch_norm='running' needs running averages, but layer '{name}' was built with "
            "track_running_stats=False: set track_running_stats=True, or choose 'transductive' or 'support'."
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
        raise UserError(
            f"layer '{name}' was built with max_norm={layer.max_norm}, which changes its weights in every "
            "forward pass, so that tasks would affect each other: build it without max_norm."
        )
    if any(is_lazy(value) for value in layer.parameters(recurse=False)):
        raise UserError(
            f"layer '{name}' ({type(layer).__name__}) has no weights before its first forward pass: call the network "
            "once with samples of the right shape before you build the method."
        )


def _function_of(layer: nn.Module, running: bool, rows: int | None) -> Callable[..., Tensor] | None:
    """What a layer computes instead of its own ``forward``; ``None`` for layers that stay as they are."""
    # a proxy, since a cycle of references would keep the tensors of a call alive
    proxy: Any = weakref.proxy(layer)
    if isinstance(layer, _BatchNorm):
        return partial(_batch_norm, proxy, running, rows)
    if isinstance(layer, _InstanceNorm):
        return partial(_instance_norm, proxy)
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.sparse):
        return partial(_embedding, proxy)
    if isinstance(layer, nn.EmbeddingBag):
        return partial(_embedding_bag, proxy)
    return None


def _batch_norm(layer: _BatchNorm, running: bool, rows: int | None, x: Tensor) -> Tensor:
    if running:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    values = (rows or x.shape[0]) * math.prod(x.shape[2:])
    if values < 2:
        raise UserError(
            f"BatchNorm with batch statistics needs at least 2 values for each of its {x.shape[1]} channels, but a "
            f"task has only {values}: serve more samples per task, choose batch_norm='running' or another norm."
        )
    # the native layer with float32 parameters keeps the statistics of a half-precision batch in float32
    wide = x.float() if x.dtype.itemsize < 4 else x
    if rows is not None:
        var, mean = torch.var_mean(wide[:rows], [0, *range(2, x.dim())], correction=0, keepdim=True)
        normalized = (wide - mean) * (var + layer.eps).rsqrt()
        if layer.affine:
            normalized = normalized * layer.weight.view_as(mean) + layer.bias.view_as(mean)
        return normalized.to(x.dtype)
    if layer.affine and x.device.type == "cpu" and x.dtype == layer.weight.dtype and x.dtype.itemsize >= 4:
        return batch_norm(x, layer.weight, layer.bias, layer.eps)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def _instance_norm(layer: _InstanceNorm, x: Tensor) -> Tensor:
    own = layer.training or layer.running_mean is None
    statistics = (None, None) if own else (layer.running_mean, layer.running_var)
    return F.instance_norm(x, *statistics, layer.weight, layer.bias, own, 0.0, layer.eps)


def _embedding(layer: nn.Embedding, x: Tensor) -> Tensor:
    """Without a sparse gradient, which has no second derivative."""
    weight = layer.weight
    if layer.padding_idx is not None:
        # under vmap torch masks the gradient of the padding for the first task only
        padding = (torch.arange(layer.num_embeddings, device=x.device) == layer.padding_idx).unsqueeze(1)
        weight = torch.where(padding, weight.detach(), weight)
    return F.embedding(x, weight, None, None, 2.0, layer.scale_grad_by_freq)


def _embedding_bag(
    layer: nn.EmbeddingBag, x: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    """By a gather, since torch has no second derivative of ``embedding_bag`` and cannot map it over tasks."""
    if offsets is not None or x.dim() != 2:
        raise UserError("in an inner loop EmbeddingBag takes token numbers of shape (N, L), and no offsets.")
    kept = torch.ones_like(x, dtype=torch.bool) if layer.padding_idx is None else x != layer.padding_idx
    kept, found = kept.unsqueeze(-1), F.embedding(x, layer.weight)
    if per_sample_weights is not None:
        found = found * per_sample_weights.unsqueeze(-1)
    if layer.mode == "max":
        largest = found.masked_fill(~kept, -torch.inf).max(1).values
        return largest.masked_fill(~kept.any(1), 0.0)
    total = (found * kept).sum(1)
    return total / kept.sum(1).clamp(min=1) if layer.mode == "mean" else total
