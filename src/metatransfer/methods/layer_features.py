"""What the layers of a method compute while it answers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.batches import Inputs, Tokens
from metatransfer.errors import UserError
from metatransfer.functional.meta.replicas import replica
from metatransfer.methods.base import MethodModule
from metatransfer.nn.layers import Layer, layers_of

Answer = TypeVar("Answer")
_WIDTH = 512  # of the features of a layer, unless it has more channels
_PLACES = 4  # of the grid that feature maps are averaged over


def watched(module: MethodModule, hooks: Mapping[str, Callable[[Tensor], Any]], run: Callable[[Any], Answer]) -> Answer:
    """What ``run`` returns for a copy, with functions that see, and may replace, the outputs of its parts by name."""
    copied = replica(module).eval()
    for name, hook in hooks.items():

        def see(layer: nn.Module, inputs: Any, output: Any, hook: Callable[[Tensor], Any] = hook) -> Any:  # noqa: ANN401
            first = output[0] if isinstance(output, tuple) and output else output  # Hugging Face's blocks return tuples
            answer = hook(first) if isinstance(first, Tensor) else None
            return answer if first is output else None

        copied.get_submodule(name).register_forward_hook(see)
    return run(copied)


def method_layers(module: MethodModule) -> list[Layer]:
    """The layers of a method's backbone, from input to output, and its head.

    Raises:
        UserError: the method has no backbone with weights.
    """
    backbone, head = (getattr(module, name, None) for name in ("backbone", "head"))
    layers = layers_of(backbone) if isinstance(backbone, nn.Module) else []
    if not layers:
        raise UserError(f"{type(module).__name__} has no network with layers: explain a method that trains a network.")
    weights = {f"head.{name}": value for name, value in head.named_parameters()} if isinstance(head, nn.Module) else {}
    return [*layers, Layer("head", (head,), weights)] if weights else layers  # type: ignore[arg-type]


@torch.no_grad()
def layer_features(module: MethodModule, x: Inputs, run: Callable[[Any], object]) -> dict[str, Tensor]:
    """Features ``(N, D)`` of samples in each layer that ``run`` uses, in the order of the layers.

    Feature maps are averaged over a grid of at most 4 x 4 places, features of tokens over the tokens.
    """
    names = {id(part): name for name, part in module.named_modules()}
    parts = {names[id(part)]: layer.name for layer in method_layers(module) for part in layer.modules}
    found: dict[str, Tensor] = {}  # in the order of the calls; a part that is used twice counts where it is used first

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda output: found.update({name: found.get(name, output)})

    watched(module, {name: keep(name) for name in parts}, run)
    count = len(x.ids if isinstance(x, Tokens) else x)
    last = {parts[name]: output for name, output in found.items()}
    mask = x.mask if isinstance(x, Tokens) else None
    # the support set may stand before the samples
    return {name: as_rows(output[-count:], mask).float().cpu() for name, output in last.items()}


def as_rows(output: Tensor, mask: Tensor | None = None) -> Tensor:
    """Outputs of a layer as features ``(N, D)``; ``mask`` ``(N, L)`` is 0 for padding."""
    if output.dim() == 4:
        side = max(1, min(_PLACES, math.isqrt(_WIDTH // output.shape[1])))
        height, width = output.shape[2:]
        output = F.adaptive_avg_pool2d(output, (min(side, height), min(side, width)))
    elif output.dim() == 3:
        weight = output.new_ones(output.shape[:2]) if mask is None else mask.to(output.dtype)
        output = (output * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    return output.flatten(1)
