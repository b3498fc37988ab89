"""Small trainable parts around the layers of a pretrained network, and their merging into its weights."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AddedLayer", "BottleneckLayer", "LowRankLayer", "ResidualConvLayer", "merge_added", "remove_added"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class AddedLayer(nn.Module, ABC):
    """A layer of a pretrained network with a small part beside or behind it.

    Args:
        base: the layer.
    """

    base: Any

    def __init__(self, base: nn.Linear | Convolution) -> None:
        super().__init__()
        self.base = base

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws the added part again, so that the answers are those of ``base``, or close to them."""

    @abstractmethod
    def merged(self) -> nn.Module | None:
        """One plain layer of the class of ``base`` with the same answers; ``None`` if there is none."""


class LowRankLayer(AddedLayer):
    r"""LoRA: a linear or convolution layer with a low-rank change of its weight (Hu et al. 2022, 2106.09685).

    .. math:: h = W x + b + \frac{\alpha}{r} B A\,\mathrm{dropout}(x)

    :math:`A` is drawn as the weights of a layer are, and :math:`B` is 0, so that the answers start as those of the
    layer. In a convolution, :math:`A` has ``rank`` filters of the layer's kernel, and :math:`B` is a 1x1 convolution.

    Args:
        base: a linear layer, or a convolution without groups.
        rank: :math:`r`, at least 1.
        alpha: :math:`\alpha`.
        dropout: dropout probability of the inputs of :math:`A`.
    """

    scale: Tensor
    lora_A: Any
    lora_B: Any

    def __init__(self, base: nn.Linear | Convolution, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = _factors(base, rank)
        self.dropout = nn.Dropout(dropout)
        # part of the checkpoint, so that the weights can be merged without the arguments
        self.register_buffer("scale", base.weight.new_tensor(alpha / rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws ``A``, and sets ``B`` to 0."""
        self.lora_A.reset_parameters()
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer with its change."""
        changed: Tensor = self.base(x) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))
        return changed

    @property
    def weight(self) -> Tensor:
        """The changed weight, for networks that read it instead of calling the layer, as ``MultiheadAttention``."""
        down, up = self.lora_A.weight.flatten(1), self.lora_B.weight.flatten(1)
        changed: Tensor = self.base.weight + self.scale * (up @ down).view_as(self.base.weight)
        return changed

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        found: Tensor | None = self.base.bias
        return found

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The layer with the changed weight."""
        plain: nn.Module = copy.deepcopy(self.base)
        plain.weight.copy_(self.weight)  # type: ignore[operator]
        return plain


class BottleneckLayer(AddedLayer):
    r"""A linear layer followed by an adapter (Houlsby et al. 2019, 1902.00751).

    .. math:: h = y + U\,\mathrm{GELU}(D y + c) + d, \qquad y = W x + b

    Args:
        base: a linear layer.
        size: units of the bottleneck, the rows of :math:`D`.
    """

    def __init__(self, base: nn.Linear, size: int) -> None:
        super().__init__(base)
        self.down = nn.Linear(base.out_features, size).to(base.weight)
        self.up = nn.Linear(size, base.out_features).to(base.weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights from a normal distribution with deviation 0.01, cut at two deviations, as the paper does."""
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted output of the layer."""
        plain = self.base(x)
        adapted: Tensor = plain + self.up(F.gelu(self.down(plain)))
        return adapted

    def merged(self) -> None:
        """``None``: the adapter is not linear."""


class ResidualConvLayer(AddedLayer):
    r"""A convolution followed by a residual adapter, a 1x1 convolution (Rebuffi et al. 2017, 1705.08045).

    .. math:: h = y + \alpha * y, \qquad y = W * x + b

    :math:`\alpha` starts at 0.

    Args:
        base: a convolution.
    """

    def __init__(self, base: Convolution) -> None:
        super().__init__(base)
        self.adapter: Any = _pointwise(base, base.out_channels, base.out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the adapter to 0."""
        nn.init.zeros_(self.adapter.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted output of the convolution."""
        plain = self.base(x)
        adapted: Tensor = plain + self.adapter(plain)
        return adapted

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The convolution with changed filters: both are linear."""
        plain: nn.Module = copy.deepcopy(self.base)
        adapter = self.adapter.weight.flatten(1)
        for value in plain.parameters(recurse=False):
            change = adapter @ (value.flatten(1) if value.dim() > 1 else value)
            value.add_(change.view_as(value))
        return plain


def replace_layers(network: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replaces submodules by what a function of name and module returns; shared modules are replaced together."""
    found: dict[int, nn.Module | None] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) not in found:
            found[id(module)] = change(name, module) if name else None
        new = found[id(module)]
        if new is not None:
            network.set_submodule(name, new)


def merge_added(network: nn.Module) -> None:
    """Replaces added layers by plain layers with the same answers, where there are such; the others stay."""
    replace_layers(network, lambda _, module: module.merged() if isinstance(module, AddedLayer) else None)


def remove_added(network: nn.Module) -> None:
    """Replaces added layers by the layers of the network."""
    replace_layers(network, lambda _, module: module.base if isinstance(module, AddedLayer) else None)


def _factors(base: nn.Linear | Convolution, rank: int) -> tuple[nn.Module, nn.Module]:
    """The layers ``A`` and ``B`` of a change."""
    if isinstance(base, nn.Linear):
        pair = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        return pair[0].to(base.weight), pair[1].to(base.weight)
    first = copy.deepcopy(base)  # with the class, stride and padding of the layer
    first.out_channels, first.bias = rank, None
    first.weight = nn.Parameter(base.weight.new_empty(rank, *base.weight.shape[1:]))
    return first, _pointwise(base, rank, base.out_channels)


def _pointwise(base: Convolution, inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution with as many axes as another one."""
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[base.weight.dim()]
    return kind(inputs, outputs, 1, bias=False).to(base.weight)
