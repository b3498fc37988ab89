"""The layers of any network from input to output, as fine-tuning policies count them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

__all__ = ["Layer", "layers_of"]

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class Layer(NamedTuple):
    """A part of a network that is frozen, or assigned a learning rate, as a unit.

    Attributes:
        name: name of its first module with parameters.
        modules: its modules in order, including those without parameters, such as dropout.
        parameters: its parameters by their names in the network.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: dict[str, nn.Parameter]


class LayerParameter(NamedTuple):
    """A parameter and the position of its layer.

    Attributes:
        name: its name in the network, with the prefix ``head.`` in the head.
        value: the parameter.
        layer: its layer.
        place: index of the layer, counted from the input.
        below_head: index of the layer, counted from the output: 0 for the head, 1 for the last layer of the backbone.
    """

    name: str
    value: nn.Parameter
    layer: Layer
    place: int
    below_head: int


def layers_of(network: nn.Module) -> list[Layer]:
    """The layers of a network from input to output: its blocks if it has blocks, otherwise its single layers.

    The members of containers (``nn.Sequential``, ``nn.ModuleList``), and of an encoder around one, count as layers.
    Normalisation and modules without parameters belong to the layer before them. Parameters next to the encoder (class
    token, position embedding) belong to the first layer, shared parameters to the first layer that has them. The order
    is that of registration, which is the order of the forward pass in all common networks.

    Args:
        network: a backbone or any other module.

    Returns:
        Layers that together hold every parameter once; an empty list for a network without parameters.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    layers: list[Layer] = []
    early: list[nn.Module] = []  # modules before the first layer
    loose: dict[str, nn.Parameter] = {}  # parameters of modules around the layers
    seen: set[int] = set()
    taken: set[str] = set()
    embedded = False
    for name, module, whole in _units(network, ""):
        if id(module) in seen:
            continue  # the same module, used twice
        seen.add(id(module))
        parameters = {names[id(value)]: value for value in module.parameters(recurse=whole)}
        parameters = {key: value for key, value in parameters.items() if key not in taken}
        taken |= parameters.keys()
        if not whole:
            loose |= parameters
            continue
        embedding = isinstance(module, nn.Embedding)
        # embeddings of words and of positions are added, so that they form one layer
        continues = not parameters or is_norm(module) or (embedding and embedded)
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
    if loose and not layers:  # only normalisation, or parameters outside of modules
        return [Layer("", (*early,) or (network,), loose)]
    if loose:
        first = layers[0]
        order = {**loose, **first.parameters}
        layers[0] = Layer(first.name, first.modules, {name: order[name] for name in names.values() if name in order})
    return layers


def parameters_of(layers: Sequence[Layer]) -> Iterator[LayerParameter]:
    """The parameters of layers, from input to output.

    Yields:
        Each parameter with the position of its layer.
    """
    for place, layer in enumerate(layers):
        for name, value in layer.parameters.items():
            yield LayerParameter(name, value, layer, place, len(layers) - 1 - place)


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, bool]]:
    # names, modules, and whether all parameters of the module are meant or only those that it holds directly
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
            # a member of a container, or one of several modules of a type, is a block whatever it contains
            yield path, child, False
            for inner, grandchild in child.named_children():
                yield from _expanded(grandchild, f"{path}.{inner}")
        else:
            yield path, child, True


def _expanded(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, bool]]:
    # the members of a container and of the containers in it
    if type(module) not in _CONTAINERS or not list(module.children()):
        yield path, module, True
        return
    yield path, module, False
    for name, child in module.named_children():
        yield from _expanded(child, f"{path}.{name}")


def _surrounds(module: nn.Module) -> bool:
    """Whether a container holds most of a module, as in the encoder of a transformer."""
    return any(type(child) in _CONTAINERS and 2 * _size(child) > _size(module) for child in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_norm(module: nn.Module) -> bool:
    """Whether a module only normalises; other libraries' layers are recognised by their name."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return all(
        isinstance(part, kinds) or ("Norm" in type(part).__name__ and all(x.dim() < 2 for x in part.parameters(False)))
        for part in module.modules()
        if part._parameters
    )
