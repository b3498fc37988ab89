"""Checks which classes a checkpoint or a configuration file may name, before anything is imported or called.

A checkpoint describes networks, optimisers etc. as ``{"class_path": ..., "init_args": ...}``. Loading it must not run
code of whoever wrote it, so each path must name a class (never a function) of the type that the argument expects, from
a known package or one that is already imported. Text stays text: it is not parsed as YAML, a file name or an import
path.

A configuration file may name any class, including one that must be imported: treat a configuration file from a
stranger like a program from a stranger.
"""

import builtins
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union

from torch import nn, optim

from metatransfer.errors import UserError

KNOWN_PACKAGES = (
    "metatransfer", "torch", "torchvision", "torchmetrics", "lightning", "sklearn", "timm", "transformers",
)  # fmt: skip
_OF_A_SCRIPT = re.compile(r"^__main__\.|<locals>")
_NOT_A_CLASS: tuple[Any, ...] = (Any, object, type(None))
_Build = Callable[[], Any]
Kind = TypeVar("Kind")


def checked_arguments(
    kind: type[Kind], described: Mapping[str, Any], trusted: Collection[str] = ()
) -> tuple[type[Kind], dict[str, Any]]:
    """Rebuilds constructor arguments from a checkpoint after checking everything that they name."""
    plan = _Plan((*KNOWN_PACKAGES, *trusted))
    try:
        plan.check_packages(described)
        kind = plan.subclass(described["_class_path"], (kind,)) if "_class_path" in described else kind
        builds = plan.arguments(kind, {name: value for name, value in described.items() if not name.startswith("_")})
        spec = inspect.getfullargspec(kind.__init__)
        accepted = builds if spec.varkw else {*spec.args, *spec.kwonlyargs}
        return kind, {name: build() for name, build in builds.items() if name in accepted}
    except (RecursionError, TypeError, AttributeError) as error:
        raise UserError(f"The checkpoint's hyper-parameters do not fit {kind.__name__}: {error}.") from error


def named_class(path: str, kind: type[Kind], trusted: Collection[str] = ()) -> type[Kind]:
    """The subclass of ``kind`` that a file names, under the same rules as a checkpoint's classes."""
    plan = _Plan((*KNOWN_PACKAGES, *trusted))
    plan.check_packages({"class_path": path})
    return plan.subclass(path, (kind,))


def check_classes(settings: Any, name: str = "") -> None:  # noqa: ANN401
    """Raises an error unless each ``class_path`` of a parsed configuration names a class."""
    items = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    path = items.get("class_path")
    if isinstance(path, str) and not isinstance(_named(path, (path.split(".")[0],)), type):
        raise UserError(f"{name or 'class_path'} must name a class, but '{path}' is not a class.")
    for key, value in [*items.items(), *(enumerate(settings) if isinstance(settings, list | tuple) else ())]:
        check_classes(value, name if key in {"init_args", "dict_kwargs"} else f"{name}.{key}".lstrip("."))


def _named(path: str, packages: Collection[str]) -> object:
    """The object at an import path; only modules of the given packages are imported."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):  # a class may stand inside another class
        module = ".".join(parts[:end])
        try:
            found: object = importlib.import_module(module) if parts[0] in packages else sys.modules[module]
        except (ImportError, KeyError):
            continue
        return functools.reduce(lambda outer, name: getattr(outer, name, None), parts[end:], found)
    return None


def _subclasses(kinds: Iterable[type[Any]]) -> Iterator[type[Any]]:
    """The imported subclasses of classes, the latest first."""
    for kind in kinds:
        for found in reversed(type.__subclasses__(kind)):
            yield found
            yield from _subclasses([found])


def _is_called(kind: type[Any], path: str) -> bool:
    """Whether a class has a name; the module of a script has another name once it is imported."""
    return path in {f"{kind.__module__}.{kind.__qualname__}", f"__main__.{kind.__qualname__}"}


def _untyped() -> tuple[Any, ...]:
    """What may be built where no annotation says more."""
    from sklearn.base import BaseEstimator  # slow to import

    return nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, BaseEstimator


def _alternatives(annotations: Iterable[Any]) -> list[Any]:
    members = [typing.get_args(a) if typing.get_origin(a) in {Union, UnionType} else (a,) for a in annotations]
    return [part for parts in members for part in parts]


def _call(make: Callable[..., Any], builds: Mapping[str, _Build]) -> Any:  # noqa: ANN401
    return make(**{name: build() for name, build in builds.items()})


class _AnyName(dict[str, Any]):
    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        return Any  # a name that is imported for type checkers only


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Turns descriptions into functions that build the objects: all classes are checked before the first is called."""

    packages: tuple[str, ...]

    def check_packages(self, value: Any) -> None:  # noqa: ANN401
        if not isinstance(value, Mapping | list | tuple):
            return
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            self.check_packages(item)
            if key not in {"class_path", "_class_path"}:
                continue
            if not re.fullmatch(r"(?a:[^\W\d]\w*(\.(?!__main__)([^\W\d]\w*|<locals>))+)", str(item)):
                raise UserError(f"The checkpoint names {item!r} as a class, which is not the import path of one.")
            package = item.split(".")[0]
            if package not in self.packages and package not in sys.modules:
                raise UserError(
                    f"The checkpoint names the class '{item}', but '{package}' is not a known package: if you trust "
                    f"the file, import '{package}' first or call load_from_checkpoint(..., trusted=['{package}'])."
                )

    def subclass(self, path: str, bases: tuple[type[Kind], ...]) -> type[Kind]:
        found = _named(path, self.packages)
        if _OF_A_SCRIPT.search(path):
            found = next((one for one in _subclasses(bases) if _is_called(one, path)), found)
        names = " or ".join(sorted(base.__name__ for base in bases))
        if _OF_A_SCRIPT.search(path) and not isinstance(found, type):
            raise UserError(
                f"The checkpoint needs the class '{path}', a {names} that was defined in a script or function: import "
                "the script first, or pass the argument that it belongs to, e.g. backbone=..."
            )
        if not isinstance(found, type) or not issubclass(found, bases):
            raise UserError(f"The checkpoint names '{path}' where a subclass of {names} belongs; nothing was called.")
        return found

    def arguments(self, kind: Any, given: Mapping[str, Any]) -> dict[str, _Build]:  # noqa: ANN401
        hints: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for base in reversed(kind.__mro__):  # keywords that a subclass passes on are annotated in its base
            init = inspect.unwrap(base.__init__)
            names = _AnyName({**vars(builtins), **getattr(init, "__globals__", {})})
            hints |= typing.get_type_hints(init, localns=names)
            if inspect.isfunction(init):
                defaults |= {name: one.default for name, one in inspect.signature(init).parameters.items()}
        return {name: self.value(value, [hints.get(name, Any)], defaults.get(name)) for name, value in given.items()}

    def value(self, value: Any, annotations: Iterable[Any], default: object = None) -> _Build:  # noqa: ANN401
        expected = _alternatives(annotations)
        if isinstance(value, Mapping) and "class_path" in value:
            return self.object(value, expected)
        group: Any = next((part for part in expected if dataclasses.is_dataclass(part)), None)
        if isinstance(value, Mapping) and group is not None:
            # fields that the description lacks keep the value that they have in the default of the argument
            make = functools.partial(dataclasses.replace, default) if isinstance(default, group) else group
            return functools.partial(_call, make, self.arguments(group, value))
        inner = [
            typing.get_args(part)[0 if typing.get_origin(part) is tuple else -1]
            for part in expected
            if typing.get_origin(part) not in {None, Callable, typing.Literal}
        ] or [Any]
        if isinstance(value, Mapping):
            entries = {key: self.value(item, inner) for key, item in value.items()}
            return lambda: {key: build() for key, build in entries.items()}
        if isinstance(value, list | tuple):
            items = [self.value(item, inner) for item in value]
            made = tuple if any(typing.get_origin(part) is tuple for part in expected) else list
            return lambda: made(build() for build in items)
        return lambda: Path(value) if isinstance(value, str) and Path in expected and str not in expected else value

    def object(self, described: Mapping[str, Any], expected: list[Any]) -> _Build:
        makers = [typing.get_args(part)[-1] for part in expected if typing.get_origin(part) is Callable]
        made = tuple(part for part in _alternatives(makers) if isinstance(part, type) and part not in _NOT_A_CLASS)
        plain = tuple(part for part in expected if isinstance(part, type) and part not in _NOT_A_CLASS)
        kind = self.subclass(described["class_path"], made + plain or _untyped())
        given = {**(described.get("init_args") or {}), **(described.get("dict_kwargs") or {})}
        make = functools.partial(functools.partial, kind) if issubclass(kind, made) else kind
        return functools.partial(_call, make, self.arguments(kind, given))
