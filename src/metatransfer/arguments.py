"""Constructor arguments as plain data, so that a checkpoint holds nothing but tensors and plain values.

Checkpoints are read with ``weights_only=True``, which rejects arbitrary objects. The command line passes arguments to
Lightning as plain data. This module converts arguments given in Python to the same form, so that
``Module.load_from_checkpoint(path)`` rebuilds the network either way.
"""

import copy
import dataclasses
import enum
import functools
import inspect
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # the one that Lightning trusts
_OMIT = object()


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Converts arguments to plain data; objects become ``{"class_path": ..., "init_args": ...}`` as in a YAML file."""
    described = {name: _describe(value) for name, value in arguments.items()}
    return {name: value for name, value in described.items() if value is not _OMIT}


class _Signature:
    """The signature of a class's ``__init__``, which ``__new__(*args, **kwargs)`` would hide."""

    def __get__(self, instance: object | None, owner: type) -> inspect.Signature:
        if instance is not None:  # a callable instance has the signature of its __call__
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class RemembersArguments:
    """Base of classes that remember their constructor arguments, so that checkpoints can record them."""

    __signature__ = _Signature()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Stores the arguments for :func:`plain_arguments`."""
        self = super().__new__(cls)
        try:
            bound = dict(cls.__signature__.bind(*args, **kwargs).arguments)
        except TypeError:
            return self  # __init__ raises the same error with a better message
        for name, parameter in cls.__signature__.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound |= bound.pop(name, {})
        # copies, because the caller may change a container later
        copied = {name: copy.deepcopy(value) for name, value in bound.items() if isinstance(value, list | dict | set)}
        self.__dict__["_init_arguments"] = bound | copied
        return self


def class_path(value: Any) -> str:  # noqa: ANN401
    """The shortest import path of a class: ``metatransfer.LinearHead``, not ``metatransfer.nn.heads.LinearHead``."""
    parts = value.__module__.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        found: Any = sys.modules.get(package)
        for name in value.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is value:
            return f"{package}.{value.__qualname__}"
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # the signature names its type
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return plain_arguments({name: getattr(value, name) for name in fields})
    if isinstance(value, functools.partial) and not value.args and isinstance(value.func, type):
        return {"class_path": class_path(value.func), "init_args": plain_arguments(value.keywords)}
    if isinstance(value, type):
        return {"class_path": class_path(value)}
    remembered = getattr(value, "__dict__", {}).get("_init_arguments")  # a network, a validator, a schedule
    if remembered is not None:
        return {"class_path": class_path(type(value)), "init_args": plain_arguments(remembered)}
    if callable(getattr(value, "get_params", None)):  # an estimator of scikit-learn knows its own
        return {"class_path": class_path(type(value)), "init_args": plain_arguments(value.get_params(deep=False))}
    return _OMIT


def as_call(value: object) -> str:
    """An object and its arguments as text, ``Name(argument=value, ...)``."""
    arguments = _describe(value)["init_args"]
    return f"{type(value).__name__}({', '.join(f'{name}={given}' for name, given in arguments.items())})"
