"""Networks as pure functions of their parameters, with an explicit BatchNorm policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs
from metatransfer.errors import UserError
from metatransfer.functional.meta.batch_norm import batch_norm
from metatransfer.functional.meta.threads import replica_of

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


def stateless(module: nn.Module, *, running: bool = False, composite: bool = False) -> Forward:
    """Turns ``module`` into a pure function of its parameters, which changes no buffer.

    Args:
        module: any network. Some layers (BatchNorm, for example) are replaced while the function runs.
        running: normalise by the running averages instead of batch statistics.
        composite: compute BatchNorm, InstanceNorm and LayerNorm from elementary operations, as second derivatives of
            the native layers are silently wrong under ``torch.func.vmap``.

    Returns:
        A function of ``(params, x, statistics_rows=None)``; parameters missing from ``params`` are taken from
        ``module``.

    Raises:
        UserError: ``running`` with a layer that has no running averages, or a layer that changes its weights in the
            forward pass.
    """
    for name, layer in batch_norm_layers(module).items():
        if running and layer.running_mean is None:
            raise UserError(
                f"batch_norm='running' needs running averages, but layer '{name}' was built with "
                "track_running_stats=False: set track_running_stats=True, or choose 'transductive' or 'support'."
            )
    for name, embedding in module.named_modules():
        if isinstance(embedding, nn.Embedding | nn.EmbeddingBag) and embedding.max_norm is not None:
            raise UserError(
                f"layer '{name}' was built with max_norm={embedding.max_norm}, which changes its weights in every "
                "forward pass, so that tasks would affect each other: build it without max_norm."
            )
    plain = _steered(module, running, composite)

    def forward(params: Mapping[str, Tensor], x: Inputs, statistics_rows: int | None = None) -> Any:  # noqa: ANN401
        own = replica_of(module)
        # layers are replaced in place, which two threads cannot do to the same module
        steered = plain if own is module else _steered(own, running, composite)
        return steered(params, x, statistics_rows)

    return forward


def _steered(module: nn.Module, running: bool, composite: bool) -> Forward:
    batch_norms = batch_norm_layers(module)
    instance_norms = [layer for layer in module.modules() if isinstance(layer, _InstanceNorm)]
    steered = {*batch_norms.values(), *instance_norms}
    # other layers (spectral_norm) may write to their buffers, so they get copies
    others = {
        f"{prefix}.{name}" if prefix else name: (layer, name)
        for prefix, layer in module.named_modules()
        for name, buffer in layer._buffers.items()
        if buffer is not None and layer not in steered
    }
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    layer_norms = [layer for layer in module.modules() if isinstance(layer, nn.LayerNorm)] if composite else []
    padded = [layer for layer in module.modules() if isinstance(layer, nn.Embedding) and layer.padding_idx is not None]

    def forward(params: Mapping[str, Tensor], x: Inputs, statistics_rows: int | None = None) -> Any:  # noqa: ANN401
        replaced: dict[nn.Module, Callable[[Tensor], Tensor]] = {
            layer: _batch_norm(layer, running, composite, statistics_rows) for layer in batch_norms.values()
        }
        replaced |= {layer: _instance_norm(layer, composite) for layer in instance_norms}
        replaced |= {layer: _layer_norm(layer) for layer in layer_norms}
        replaced |= {layer: _padded_embedding(layer) for layer in padded}
        with _forwards(replaced), _differentiable_layers(recurrent and pytree.tree_leaves(x)[0].is_cuda):
            copies = {path: layer._buffers[name].clone() for path, (layer, name) in others.items()}
            return functional_call(module, {**copies, **params}, (x,))

    return forward


@contextmanager
def _differentiable_layers(without_cudnn: bool) -> Iterator[None]:
    """Disables kernels without a second derivative: cuDNN's recurrent layers and the fused attention of eval mode."""
    # fused attention is used unless a tensor requires a gradient, which under vmap none ever seems to
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False) if without_cudnn else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _forwards(replaced: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Temporarily replaces the ``forward`` of layer instances."""
    before = {layer: layer.__dict__["forward"] for layer in replaced if "forward" in layer.__dict__}
    for layer, function in replaced.items():
        layer.__dict__["forward"] = function
    try:
        yield
    finally:
        for layer in replaced:
            layer.__dict__.pop("forward", None)
        for layer, function in before.items():
            layer.__dict__["forward"] = function


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _affine(layer: _BatchNorm | _InstanceNorm, normalized: Tensor) -> Tensor:
    # read at call time: functional_call has put the task's own parameters there
    if not layer.affine:
        return normalized
    return normalized * _per_channel(layer.weight, normalized) + _per_channel(layer.bias, normalized)


def _batch_norm(layer: _BatchNorm, running: bool, composite: bool, rows: int | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if running:
            if composite:
                mean, var = layer.running_mean, layer.running_var
                assert mean is not None
                assert var is not None
                return _affine(layer, (x - _per_channel(mean, x)) * _per_channel((var + layer.eps).rsqrt(), x))
            return F.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
            )
        values = (rows or len(x)) * math.prod(x.shape[2:])
        if values < 2:
            raise UserError(
                f"BatchNorm with batch statistics needs at least 2 values for each of its {x.shape[1]} channels, but a "
                f"task has only {values}: serve more samples per task, choose batch_norm='running' or another norm."
            )
        # the native layer with float32 parameters keeps the statistics of a half-precision batch in float32
        wide = x.float() if x.dtype.itemsize < 4 else x
        if rows is not None:
            var, mean = torch.var_mean(wide[:rows], [0, *range(2, x.dim())], correction=0, keepdim=True)
            return _affine(layer, (wide - mean) * (var + layer.eps).rsqrt()).to(x.dtype)
        if composite:
            return _affine(layer, F.batch_norm(wide, None, None, None, None, True, 0.0, layer.eps)).to(x.dtype)
        if layer.affine and x.device.type == "cpu" and x.dtype == layer.weight.dtype and x.dtype.itemsize >= 4:
            return batch_norm(x, layer.weight, layer.bias, layer.eps)
        return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)

    return forward


def _instance_norm(layer: _InstanceNorm, composite: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not layer.training and layer.running_mean is not None:
            assert layer.running_var is not None
            scale = (layer.running_var + layer.eps).rsqrt()
            return _affine(layer, (x - _per_channel(layer.running_mean, x)) * _per_channel(scale, x))
        if composite:
            return _affine(layer, F.instance_norm(x, eps=layer.eps))
        return F.instance_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)

    return forward


def _layer_norm(layer: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        normalized = F.layer_norm(x, layer.normalized_shape, None, None, layer.eps)
        if not layer.elementwise_affine:
            return normalized
        scaled = normalized * layer.weight
        return scaled if layer.bias is None else scaled + layer.bias

    return forward


def _padded_embedding(layer: nn.Embedding) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        # under vmap torch masks the gradient of the padding for the first task only
        padding = (torch.arange(layer.num_embeddings, device=x.device) == (layer.padding_idx or 0)).unsqueeze(1)
        weight = torch.where(padding, layer.weight.detach(), layer.weight)
        return F.embedding(x, weight, None, None, 2.0, layer.scale_grad_by_freq)

    return forward
