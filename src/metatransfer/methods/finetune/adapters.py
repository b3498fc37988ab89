"""Policies that add small layers to a network and train them."""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from metatransfer.checks import check_count, check_fraction, check_positive, did_you_mean
from metatransfer.errors import UserError
from metatransfer.methods.finetune.partial import PartialPolicy
from metatransfer.methods.finetune.peft_files import read_peft_adapter
from metatransfer.nn.blocks import AddedLayer, BottleneckLayer, LowRankLayer, ResidualConvLayer
from metatransfer.nn.blocks.added_layers import replace_layers
from metatransfer.nn.layers import is_norm
from metatransfer.nn.weights import weight_files_are_read

__all__ = ["Adapter", "LoRA"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARDS = {kind.forward for kind in (nn.Linear, *_CONVOLUTIONS)}
# where a sub-layer of a transformer ends: BERT and its kin, MPNet, DistilBERT, timm, torchvision
_SUBLAYERS = re.compile(r"(.*\.)?(output\.dense|attn\.o|out_lin|lin2|attn\.proj|mlp\.fc2|encoder_layer_\d+\.mlp\.3)")


class AddingPolicy(PartialPolicy):
    """Base class of policies that add small layers to chosen layers.

    Args:
        targets: the chosen layers, see :class:`LoRA`.
        adapter_only: see :class:`PartialPolicy`.
    """

    def __init__(self, targets: str | list[str] | None = None, adapter_only: bool = False) -> None:
        super().__init__(adapter_only)
        self.targets = targets

    def named(self, layers: dict[str, nn.Module]) -> list[str]:
        """The names of the layers that ``targets`` names, by the rules of peft."""
        targets = [self.targets] if isinstance(self.targets, str) else self.targets
        found: dict[str, None] = {}
        for wanted in targets or [""]:
            hits = [name for name in layers if name and self._is_named(name, wanted)]
            if not hits:
                self._unknown(wanted, layers)
            found |= dict.fromkeys(hits)
        return list(found)

    def _is_named(self, name: str, wanted: str) -> bool:
        if not isinstance(self.targets, str):
            return f".{name}".endswith(f".{wanted}")
        try:
            return re.fullmatch(wanted, name) is not None
        except re.error as error:
            raise UserError(
                f"{type(self).__name__}: targets='{wanted}' is not a regular expression ({error}): fix it, or give a "
                "list of names."
            ) from error

    def _unknown(self, wanted: str, layers: dict[str, nn.Module]) -> None:
        known = [name for name, layer in layers.items() if changeable(layer)]
        hint = did_you_mean(str(wanted), [*known, *(name.rpartition(".")[2] for name in known)])
        way = "is called" if isinstance(self.targets, list) else "has a whole name that matches"
        raise UserError(
            f"{type(self).__name__}: no layer of the backbone {way} '{wanted}'{hint} Some of its layers are "
            f"{', '.join(known[:3])}: give a list of names or of their ends."
        )

    def add(self, backbone: nn.Module, names: Iterable[str], add: Callable[[Any], AddedLayer]) -> None:
        """Replaces layers by such that have an addition, which trains."""
        chosen = set(names)
        replace_layers(backbone, lambda name, layer: add(layer) if name in chosen else None)
        for name in chosen:
            added = [one for one, _ in backbone.get_submodule(name).named_parameters() if not one.startswith("base.")]
            self._trained |= {f"{name}.{one}" for one in added}


class LoRA(AddingPolicy):
    r"""Trains a low-rank change of the weights of linear and convolution layers (Hu et al. 2022, 2106.09685).

    .. math:: W' = W + \frac{\alpha}{r} B A

    The head trains as well; everything else is frozen. :meth:`FineTuneModule.merged` and ``lightning export`` add the
    changes to the weights, so that the network costs no more than before. With rank 0 only the head trains.

    Args:
        rank: :math:`r` of each change.
        alpha: :math:`\alpha`.
        dropout: dropout probability of the inputs of :math:`A`.
        targets: the layers, as ``target_modules`` of the package peft: a list of names within the backbone or of their
            ends (``query`` for all queries of a BERT), or a regular expression for whole names. Defaults to all linear
            and convolution layers that have more weights than their change, as peft's ``all-linear``, which leaves
            out convolutions.
        adapter: a folder of peft with ``adapter_config.json`` and ``adapter_model.safetensors``. Its changes are the
            initial ones; its rank, alpha, dropout and layers replace the arguments above. It is also needed to load a
            checkpoint.
        adapter_only: see :class:`PartialPolicy`.

    Raises:
        UserError: a number is out of range, a target cannot be changed, the rank is above the size of a target, or
            files of peft do not fit the network.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: str | list[str] | None = None,
        adapter: str | None = None,
        adapter_only: bool = False,
    ) -> None:
        super().__init__(targets, adapter_only)
        check_count(0, rank=rank)
        check_positive(alpha=alpha)
        check_fraction(dropout=dropout)
        self.adapter = read_peft_adapter(adapter) if adapter is not None else None
        self.rank, self.alpha, self.dropout = self.adapter[1:4] if self.adapter else (rank, alpha, dropout)

    def prepare(self, network: nn.Module) -> None:
        """Adds the changes to the layers."""
        backbone: Any = network.backbone
        names = self.adapter.targets(backbone) if self.adapter else {}
        chosen = list(names.values()) or self._chosen(backbone)
        for name in chosen:
            self._check(name, backbone.get_submodule(name))
        change = partial(LowRankLayer, rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        self.add(backbone, chosen, change)
        if self.adapter and weight_files_are_read():
            self.adapter.load(backbone, names)

    def _chosen(self, backbone: nn.Module) -> list[str]:
        layers = dict(backbone.named_modules())
        if not self.rank:
            return []
        if self.targets is not None:
            return self.named(layers)
        usable = {name: _size(layer) for name, layer in layers.items() if changeable(layer)}
        found = [name for name, size in usable.items() if self.rank * sum(size) < math.prod(size)]
        if not found:
            raise UserError(
                f"LoRA: no linear or convolution layer of the backbone has more weights than a change of rank "
                f"{self.rank}: lower rank, or name targets."
            )
        return found

    def _check(self, name: str, layer: nn.Module) -> None:
        if not changeable(layer):
            raise UserError(
                f"LoRA: layer '{name}' is of the type {type(layer).__name__}, but only linear layers and convolutions "
                "without groups have low-rank changes: name others as targets."
            )
        size = _size(layer)
        if self.rank > min(size):
            raise UserError(
                f"LoRA: rank={self.rank} is above the size of layer '{name}', whose weight is a matrix of {size[0]} x "
                f"{size[1]}: lower rank, or name other targets."
            )


class Adapter(AddingPolicy):
    """Trains small layers that are added behind layers of the backbone, its normalisation layers and the head.

    In a transformer, they are bottlenecks behind both sub-layers of each block (Houlsby et al. 2019, 1902.00751); in
    torchvision's, behind the second one alone. In a convolutional network, they are residual 1x1 convolutions behind
    each convolution with a larger kernel and without groups (Rebuffi et al. 2017, 1705.08045).

    Args:
        size: units of each bottleneck; of no meaning for convolutions.
        targets: linear layers and convolutions to add adapters to, as in :class:`LoRA`.
        adapter_only: see :class:`PartialPolicy`.

    Raises:
        UserError: ``size`` is below 1, or no layer, or an unsuitable one, is named.
    """

    def __init__(self, size: int = 64, targets: str | list[str] | None = None, adapter_only: bool = False) -> None:
        super().__init__(targets, adapter_only)
        check_count(size=size)
        self.size = size

    def prepare(self, network: nn.Module) -> None:
        """Adds the adapters."""
        backbone: Any = network.backbone
        layers = dict(backbone.named_modules())
        # these read the weights of a layer instead of calling it
        readers = [name for name, layer in layers.items() if isinstance(layer, nn.MultiheadAttention)]
        usable = {
            name: layer
            for name, layer in layers.items()
            if changeable(layer) and name.rpartition(".")[0] not in readers
        }
        chosen = _sublayers(usable) if self.targets is None else self.named(layers)
        for name in chosen:
            if name not in usable:
                raise UserError(
                    f"Adapter: layer '{name}' is of the type {type(layers[name]).__name__}, but adapters are added to "
                    "linear layers outside of MultiheadAttention and to convolutions without groups: name others as "
                    "targets."
                )
        if not chosen:
            raise UserError("Adapter: the backbone has no layer that adapters are usually added to: name targets.")
        self.add(backbone, chosen, self._adapted)
        norms = [name for name, part in backbone.named_modules() if part._parameters and is_norm(part)]
        self._trained |= {one for one, _ in backbone.named_parameters() if one.rpartition(".")[0] in norms}

    def _adapted(self, layer: Any) -> AddedLayer:  # noqa: ANN401
        return BottleneckLayer(layer, self.size) if isinstance(layer, nn.Linear) else ResidualConvLayer(layer)


def _sublayers(layers: dict[str, nn.Module]) -> list[str]:
    """Where adapters are added by default."""
    linear = [name for name, one in layers.items() if isinstance(one, nn.Linear) and _SUBLAYERS.fullmatch(name)]
    wide = [name for name, one in layers.items() if isinstance(one, _CONVOLUTIONS) and max(one.kernel_size) > 1]
    return linear or wide


def changeable(layer: nn.Module) -> bool:
    """Whether the output of a layer is linear in its weight as a matrix; ``Conv2dSame`` is timm's, which only pads."""
    known = type(layer).forward in _FORWARDS or type(layer).__name__ == "Conv2dSame"
    return known and getattr(layer, "groups", 1) == 1


def _size(layer: Any) -> tuple[int, int]:  # noqa: ANN401
    """Rows and columns of the weight as a matrix."""
    return len(layer.weight), layer.weight[0].numel()
