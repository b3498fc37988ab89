"""Finds classes by import path and by base class, and inspects their arguments."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from importlib import import_module
from pydoc import locate
from typing import Any

from jsonargparse import Namespace

from metatransfer.errors import UserError


def subclasses(base: type) -> dict[str, type]:
    """The subclasses of a base by name, without private and abstract ones and Lightning's demos."""
    found: dict[str, type] = {}
    children: list[type] = base.__subclasses__()
    for child in children:
        package = ".".join(child.__module__.split(".")[:3])
        public = package.split(".")[0] != "lightning" or hasattr(import_module(package), child.__name__)
        if public and not child.__name__.startswith("_") and not inspect.isabstract(child) and "demos" not in package:
            found[child.__name__] = child
        found |= subclasses(child)
    return dict(sorted(found.items()))


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor arguments of a class, and of those bases that it passes ``**kwargs`` on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__[:-1]:
        if "__init__" in vars(base):
            own = inspect.signature(vars(base)["__init__"]).parameters
            found = {**own, **found}
            if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in own.values()):
                break
    return {name: one for name, one in found.items() if name != "self"}


def type_of(kind: type, name: str) -> Any:  # noqa: ANN401
    """The annotation of a constructor argument; ``None`` if unknown."""
    for base in kind.__mro__[:-1]:
        init = vars(base).get("__init__")
        if init is not None and name in inspect.signature(init).parameters:
            try:
                return typing.get_type_hints(init).get(name)
            except NameError:  # imported for type checking only
                return None
    return None


def classes_in(hint: Any) -> list[type]:  # noqa: ANN401
    """The classes in an annotation."""
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        arguments = arguments[-1:]
    if not arguments:
        return [hint] if isinstance(hint, type) and hint.__module__ not in ("builtins", "types") else []
    return [found for argument in arguments for found in classes_in(argument)]


def check_nulls(settings: Any, path: str, kind: Any = None) -> None:  # noqa: ANN401
    """Raises an error for an argument that is null, but needs a value; the parser accepts null everywhere."""
    if not isinstance(settings, Namespace):
        return
    if "class_path" in settings:
        kind = locate(settings.class_path)
    if not isinstance(kind, type):
        return
    known = parameters(kind)
    for name, value in vars(settings.get("init_args") or settings).items():
        parameter, hint = known.get(name), type_of(kind, name)
        typed = parameter is not None and parameter.default is not None and hint is not None and hint is not Any
        if value is None and typed and type(None) not in typing.get_args(hint):
            raise UserError(f"{path}.{name} is null, but needs a value: remove it to use its default, or give a value.")
        groups = [one for one in classes_in(hint) if dataclasses.is_dataclass(one)]  # without class_path
        check_nulls(value, f"{path}.{name}", groups[0] if groups else None)
