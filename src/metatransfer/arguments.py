"""Constructor arguments as plain data, so that a checkpoint holds nothing but tensors and plain values.

Checkpoints are read with ``weights_only=True``, which refuses arbitrary objects. The command line already hands
Lightning the arguments as plain data; here the same form is made of arguments given in Python, so that
``Module.load_from_checkpoint(path)`` rebuilds the network either way.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # the one that Lightning trusts
_OMIT = object()


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as plain data; objects become ``{"class_path": ..., "init_args": ...}`` as in a YAML file."""
    described = {name: _describe(value) for name, value in arguments.items()}
    return {name: value for name, value in described.items() if value is not _OMIT}


def remember_arguments(obj: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Notes what an object is constructed with, for :func:`plain_arguments`; called from ``__new__``."""
    try:
        signature = inspect.signature(type(obj).__init__)
        bound = dict(list(signature.bind(obj, *args, **kwargs).arguments.items())[1:])
    except TypeError:
        return  # __init__ raises the same, in better words
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    # copies of containers: what is done to them later is not what was given
    obj.__dict__["_init_arguments"] = {name: _copied(value) for name, value in bound.items()}


def _copied(value: Any) -> Any:  # noqa: ANN401
    return copy.deepcopy(value) if isinstance(value, list | dict | set) else value


def _class_path(value: Any) -> str:  # noqa: ANN401
    return f"{value.__module__}.{value.__qualname__}"


def _describe(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, enum.Enum):
        return _describe(value.value)
    if isinstance(value, np.generic):
        return _describe(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        items = [_describe(item) for item in value]
        return _OMIT if any(item is _OMIT for item in items) else items
    if isinstance(value, dict):
        return plain_arguments(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # its type stands in the signature
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return plain_arguments({name: getattr(value, name) for name in fields})
    if isinstance(value, functools.partial) and not value.args and isinstance(value.func, type):
        return {"class_path": _class_path(value.func), "init_args": plain_arguments(value.keywords)}
    if isinstance(value, type):
        return {"class_path": _class_path(value)}
    remembered = getattr(value, "__dict__", {}).get("_init_arguments")  # a network, a validator, a schedule
    if remembered is not None:
        return {"class_path": _class_path(type(value)), "init_args": plain_arguments(remembered)}
    if callable(getattr(value, "get_params", None)):  # an estimator of scikit-learn knows its own
        return {"class_path": _class_path(type(value)), "init_args": plain_arguments(value.get_params(deep=False))}
    return _OMIT
