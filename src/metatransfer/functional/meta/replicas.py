"""Copies of a network that share its tensors, so that a call can replace tensors without touching the network."""

import copy
import functools
import operator
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metatransfer.errors import UserError

__all__ = ["replica"]

Module = TypeVar("Module", bound=nn.Module)
FUNCTIONS = (FunctionType, MethodType, partial)
PLAIN = frozenset((bool, int, float, str, NoneType))


def replica(module: Module, tensors: Mapping[str, Tensor] | None = None, cloned: Iterable[Tensor] = ()) -> Module:
    """A copy of the structure of a module, which shares its tensors, except for those that are replaced.

    Modules, tensors, lists and dictionaries that are reachable by several names stay one object. Functions that the
    module keeps, such as hooks, refer to the copy. Nothing that the copy does to its attributes, its training mode or
    its hooks changes the module.

    Args:
        module: any network without TorchScript.
        tensors: new tensors, by the names of the parameters and buffers that they replace.
        cloned: tensors of the module that the copy may write to.

    Raises:
        UserError: a part of the module is a ScriptModule.
    """
    named = {id(operator.attrgetter(name)(module)): tensor for name, tensor in (tensors or {}).items()}
    copier = _Copier({id(tensor): tensor.clone() for tensor in cloned} | named)
    found: Module = copier.copied(module)
    for owner, key in copier.functions:  # now that all modules are known
        owner[key] = copier.bound(owner[key])
    return found


class Unused(TorchFunctionMode):
    """Within the block, computing with tensors that a replica has replaced raises an error.

    Args:
        names: names of the replaced tensors by their ``id``.

    Raises:
        UserError: a hook, a closure or a helper object computes with a tensor of the original module.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Calls the function."""
        kwargs = kwargs or {}
        name = next((self.names[id(part)] for part in pytree.tree_leaves((args, kwargs)) if id(part) in self.names), "")
        if name and getattr(func, "__name__", "") != "__get__":  # a shape or a type may be read
            raise UserError(
                f"the network uses its parameter '{name}' in an object or a function outside of its modules, where it "
                "cannot be replaced for a task: make this object or function an attribute of the network."
            )
        return func(*args, **kwargs)


def deep_copy(module: Any, memo: dict[int, Any] | None = None) -> Any:  # noqa: ANN401
    """``copy.deepcopy`` of modules that may keep tensors of their last forward pass, which are detached in the copy."""
    with _Detached():
        return copy.deepcopy(module, memo)


class _Detached(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


class _Copier:
    def __init__(self, replaced: dict[int, Any]) -> None:
        self.known = replaced  # copies by the id of what they copy
        self.functions: list[tuple[Any, Any]] = []

    def copied(self, value: Any) -> Any:  # noqa: ANN401
        """A copy of a module or a container; any other object is shared, unless it is replaced."""
        if id(value) in self.known:
            return self.known[id(value)]
        kind = type(value)
        if isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule):
                raise UserError(
                    f"{kind.__name__} was compiled by TorchScript, whose weights cannot be replaced for a task: use "
                    "the network that it was made from."
                )
            original = getattr(value, "_orig_mod", None)  # compiled code would run with its weights
            if original is not None:
                self.known[id(value)] = found = self.copied(original)
                return found
            self.known[id(value)] = found = object.__new__(kind)
            self._fill(vars(found), vars(value))
            vars(found).pop("_compiled_call_impl", None)  # as above
        elif kind in (dict, OrderedDict):
            self.known[id(value)] = found = kind()
            self._fill(found, value)
        elif kind is list:
            self.known[id(value)] = found = [None] * len(value)
            self._fill(found, dict(enumerate(value)))
        else:
            return tuple(map(self.copied, value)) if kind is tuple else value
        return found

    def _fill(self, found: Any, values: Mapping[Any, Any]) -> None:  # noqa: ANN401
        for key, value in values.items():
            kind = type(value)
            if kind in PLAIN:
                found[key] = value
            elif kind is OrderedDict and not value:  # most attributes of a module are its hooks, of which it has none
                found[key] = self.known.setdefault(id(value), OrderedDict())
            else:
                found[key] = self.copied(value)
                if kind in FUNCTIONS:
                    self.functions.append((found, key))

    def bound(self, value: Any) -> Any:  # noqa: ANN401
        """A function that refers to the copies; any other object is shared, unless it was copied."""
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.bound(value.__self__))
        if isinstance(value, partial):
            keywords = {name: self.bound(part) for name, part in value.keywords.items()}
            return partial(self.bound(value.func), *map(self.bound, value.args), **keywords)
        if not isinstance(value, FunctionType) or not value.__closure__ or id(value) in self.known:
            return self.known.get(id(value), value)
        self.known[id(value)] = value  # it may refer to itself
        cells = tuple(map(self._cell, value.__closure__))
        if not all(map(operator.is_, cells, value.__closure__)):
            made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
            self.known[id(value)] = functools.update_wrapper(made, value)
            made.__kwdefaults__ = value.__kwdefaults__
        return self.known[id(value)]

    def _cell(self, cell: CellType) -> CellType:
        try:
            found = self.bound(cell.cell_contents)
        except ValueError:  # a variable that is not assigned yet
            return cell
        return cell if found is cell.cell_contents else CellType(found)
