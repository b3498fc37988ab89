"""The layers of any network from input to output, as policies of fine-tuning count them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class Layer(NamedTuple):
    """A part of a network that is frozen, or given a learning rate, as one.

    Attributes:
        name: of its first module with parameters, in the network.
        modules: what it is made of, in order; also dropout and the like, which a frozen layer must switch off.
        parameters: its parameters by their names in the network.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: dict[str, nn.Parameter]


class LayerParameter(NamedTuple):
    """A parameter and its place among the layers.

    Attributes:
        name: in the network, ``head.`` in front of those of the head.
        value: the parameter.
        layer: the layer that it belongs to.
        place: number of this layer, counted from the input.
        below_head: number of layers between its layer and the output: 0 for the head, 1 for the last of the backbone.
    """

    name: str
    value: nn.Parameter
    layer: Layer
    place: int
    below_head: int


def layers_of(network: nn.Module) -> list[Layer]:
    """The layers of a network from input to output: its blocks where it is made of blocks, else its single layers.

    Containers (``nn.Sequential``, ``nn.ModuleList``) are counted by what is in them, and so is an encoder around one.
    A normalisation belongs to the layer before it, as does everything without parameters; parameters beside the
    encoder (class token, position embedding) belong to the first layer, shared ones to the first that has them. Order
    is that of registration, which every common network registers in the order of its forward pass.

    Args:
        network: a backbone or any other module.

    Returns:
        Layers that together hold every parameter once; none for a network without parameters.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    layers: list[Layer] = []
    early: list[nn.Module] = []  # what stands before the first layer
    loose: dict[str, nn.Parameter] = {}  # held by no layer but by what is around the layers
    seen: set[int] = set()
    taken: set[str] = set()
    embedded = False
    for name, module, whole in _units(network, ""):
        if id(module) in seen:
            continue  # the same module in a second place
        seen.add(id(module))
        parameters = {names[id(value)]: value for value in module.parameters(recurse=whole)}
        parameters = {key: value for key, value in parameters.items() if key not in taken}
        taken |= parameters.keys()
        if not whole:
            loose |= parameters
            continue
        embedding = isinstance(module, nn.Embedding)
        # words and positions are looked up side by side, not one after the other
        continues = not parameters or _is_norm(module) or (embedding and embedded)
        if layers and continues:
            last = layers[-1]
            layers[-1] = Layer(last.name, (*last.modules, module), last.parameters | parameters)
        elif continues:
            early.append(module)
            loose |= parameters
        else:
            layers.append(Layer(name, (*early, module), parameters))
            early = []
        embedded = embedding or (embedded and not parameters)
    if loose and not layers:  # nothing but normalisation, or parameters of its own
        return [Layer("", (*early,) or (network,), loose)]
    if loose:
        first = layers[0]
        order = {**loose, **first.parameters}
        layers[0] = Layer(first.name, first.modules, {name: order[name] for name in names.values() if name in order})
    return layers


def parameters_of(layers: Sequence[Layer]) -> Iterator[LayerParameter]:
    """The parameters of layers, from input to output.

    Yields:
        Each with its layer.
    """
    for place, layer in enumerate(layers):
        for name, value in layer.parameters.items():
            yield LayerParameter(name, value, layer, place, len(layers) - 1 - place)


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, bool]]:
    """What the layers are made of, in order.

    Yields:
        The name in the network, the module, and ``False`` where only parameters that it holds directly are meant.
    """
    filled = [name for name, child in module.named_children() if _size(child)]
    if not filled:
        yield prefix.rstrip("."), module, True
        return
    yield prefix.rstrip("."), module, False
    single = len(filled) == 1 and not module._parameters
    kinds = [type(child) for child in module.children()]
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if single and name in filled:
            yield from _units(child, f"{path}.")
        elif type(child) in _CONTAINERS:
            yield from _expanded(child, path)
        elif type(module) not in _CONTAINERS and kinds.count(type(child)) == 1 and _surrounds(child):
            # what stands in a container, or beside another of its kind, is a block, whatever it is made of
            yield path, child, False
            for inner, grandchild in child.named_children():
                yield from _expanded(grandchild, f"{path}.{inner}")
        else:
            yield path, child, True


def _expanded(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, bool]]:
    """The members of a container and of the containers in it; anything else as it is.

    Yields:
        As :func:`_units`.
    """
    if type(module) not in _CONTAINERS or not list(module.children()):
        yield path, module, True
        return
    yield path, module, False
    for name, child in module.named_children():
        yield from _expanded(child, f"{path}.{name}")


def _surrounds(module: nn.Module) -> bool:
    """Whether most of a module is in a container, as in the encoder of a transformer."""
    return any(type(child) in _CONTAINERS and 2 * _size(child) > _size(module) for child in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and does nothing else; libraries have their own, named so."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return all(
        isinstance(part, kinds) or ("Norm" in type(part).__name__ and all(x.dim() < 2 for x in part.parameters(False)))
        for part in module.modules()
        if part._parameters
    )
