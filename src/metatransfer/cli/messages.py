"""The parser's reports of frequent mistakes, as one sentence with the nearest name; other reports stay as they are."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from metatransfer.checks import did_you_mean

_PLAIN = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "list": "a list",
    "dict": "names with values",
    "tuple": "a list",
    "Iterable": "a list",
    "Sequence": "a list",
}
_SECTIONS: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
_COMMANDS = ("fit", "validate", "test", "predict")
_SHOWN = 16  # a longer list of names does not help


def explain(message: str, options: Iterable[str] = ()) -> str:
    """One sentence about a mistake on the command line.

    Args:
        message: the report of jsonargparse.
        options: options of the command, such as ``--trainer.max_epochs``.

    Returns:
        What was expected, what came, and what to do.
    """
    for pattern, explanation in _EXPLANATIONS:
        found = re.search(pattern, message)
        if found:
            return (
                explanation(found, message) if explanation is not _unknown_option else _unknown_option(found, options)
            )
    return _in_one_line(message)


def explain_exception(message: str) -> str:
    """One sentence about a setting that Lightning or torch does not accept.

    Args:
        message: the message of the exception.

    Returns:
        The same in one line, with a remedy where there is one.
    """
    if "must include a monitor when a `ReduceLROnPlateau` scheduler is used" in message:
        return (
            "torch's ReduceLROnPlateau does not know what to monitor: give --model.lr_scheduler ReduceLROnPlateau "
            "--model.lr_scheduler.monitor val/loss, without a path."
        )
    batches = re.search(r"`val_check_interval` \((\d+)\) must be less than .* batches \((\d+)\)", message)
    if batches:
        return (
            f"trainer.val_check_interval is {batches[1]}, but an epoch has only {batches[2]} batches: lower it, or count "
            "over epochs with --trainer.check_val_every_n_epoch null."
        )
    return _in_one_line(message)


def _in_one_line(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines) + ("" if lines and lines[-1].endswith((".", "?", "!")) else ".")


def import_class(path: str) -> Any:  # noqa: ANN401
    """The object that an import path names.

    Args:
        path: ``package.module.Class``.

    Returns:
        The object.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def needs_value(kind: type, name: str) -> bool:
    """Whether an argument of a class cannot be null.

    Args:
        kind: the class.
        name: of the argument.

    Returns:
        ``True`` if its annotation excludes ``None`` and its default is another value.
    """
    parameter, hint = _parameters(kind).get(name), _hint(kind, name)
    if parameter is None or parameter.default is None or hint is None or hint is Any:
        return False
    return type(None) not in typing.get_args(hint)


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class and of its bases."""
    inits = [vars(base)["__init__"] for base in reversed(kind.__mro__[:-1]) if "__init__" in vars(base)]
    return {name: one for init in inits for name, one in inspect.signature(init).parameters.items() if name != "self"}


def _hint(kind: type, name: str) -> Any:  # noqa: ANN401
    """The type of an argument, ``None`` if it has none that can be evaluated."""
    for base in kind.__mro__[:-1]:
        init = vars(base).get("__init__")
        if init is not None and name in inspect.signature(init).parameters:
            try:
                return typing.get_type_hints(init).get(name)
            except NameError:  # a type that is imported for type checking alone
                return None
    return None


def _classes_in(hint: Any) -> list[type]:  # noqa: ANN401
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        arguments = arguments[-1:]  # what it returns
    if not arguments:
        return [hint] if isinstance(hint, type) and hint.__module__ not in ("builtins", "types") else []
    return [found for argument in arguments for found in _classes_in(argument)]


def subclasses(base: type) -> dict[str, type]:
    """The classes below a base that users may name; Lightning's demos and inner parts are not among them.

    Args:
        base: the base class.

    Returns:
        Grandchildren included, by name.
    """
    found: dict[str, type] = {}
    children: list[type] = base.__subclasses__()
    for child in children:
        package = ".".join(child.__module__.split(".")[:3])
        public = package.split(".")[0] != "lightning" or hasattr(importlib.import_module(package), child.__name__)
        if public and not child.__name__.startswith("_") and not inspect.isabstract(child) and "demos" not in package:
            found[child.__name__] = child
        found |= subclasses(child)
    return dict(sorted(found.items()))


def _place(message: str, before: int) -> tuple[list[str], type | None]:
    """What the parser was looking at, at a place of its report: the arguments from outside inwards, and the class."""
    keys: list[tuple[int, str]] = []
    for found in re.finditer(r'^([ \t-]*)(?:.*: )?Parser key "([\w.]+)"', message[:before], re.MULTILINE):
        while keys and keys[-1][0] >= len(found[1]):  # a neighbour's, not an outer one
            keys.pop()
        keys.append((len(found[1]), found[2]))
    if re.search(r"callable class:\s*$", message[:before]):  # an optimiser, say, which is named behind its problem
        paths = re.findall(r"class_path='([\w.]+)'", message[before:])[:1]
    else:
        paths = re.findall(r"Problem with given class_path '([\w.]+)'", message[:before])[-1:]
    outer = import_class(paths[0]) if paths else Trainer if keys and keys[0][1].startswith("trainer") else None
    return [key for _, key in keys], outer if isinstance(outer, type) else None


def _known(keys: list[str], outer: type | None) -> dict[str, type]:
    """The classes that an argument can be."""
    key = keys[-1].rpartition(".")[2] if keys else ""
    bases = [_SECTIONS[key]] if key in _SECTIONS else _classes_in(_hint(outer, key)) if outer is not None else []
    return dict(sorted({name: kind for base in bases for name, kind in subclasses(base).items()}.items()))


def _unknown_class(found: re.Match[str], message: str) -> str:
    if re.search(r"Expected an? <class '(int|float)'>", message[message.rfind("Parser key", 0, found.start()) :]):
        return _wrong_value(found, message)  # a number, for which torch also takes a tensor
    name, (keys, outer) = found[1], _place(message, found.start())
    known = _known(keys, outer)
    key = keys[-1].rpartition(".")[2] if keys else "class"
    hint = did_you_mean(name, known)
    names = f" Known: {', '.join(known)}." if known and (hint == "." or len(known) <= _SHOWN) else ""
    own = " For data, also give a file or folder that exists." if key == "source" else ""
    return f"unknown class '{name}' for {key}{hint}{names} Your own class: by its path, package.module.Class.{own}"


def _unknown_argument(found: re.Match[str], message: str) -> str:
    keys, outer = _place(message, found.start())
    if outer is None:
        return f"unknown argument '{found[1]}'."
    # what an optimiser or a scheduler works on is not the user's to give
    known = [name for name in _parameters(outer) if name not in ("args", "kwargs", "params", "optimizer")]
    if not known and keys:  # the base, which stands for any class
        meant = [name for name, kind in subclasses(outer).items() if found[1] in _parameters(kind)]
        return f"'{found[1]}' belongs to a class that is not named: give it first, such as --{'.'.join(keys)} {(meant or ['CLASS'])[0]}."
    return f"{outer.__name__} has no argument '{found[1]}'{did_you_mean(found[1], known)} Known: {', '.join(known)}."


def _unknown_option(found: re.Match[str], options: Iterable[str]) -> str:
    option = found[1].split()[0].split("=")[0]
    if option.endswith((".yaml", ".yml")):
        return f"'{option}' stands alone: give --config {option}."
    section, dot, rest = option.lstrip("-").partition(".")
    for word in ("model", "data"):  # what follows depends on the class, so it is not among the options
        if dot and did_you_mean(section, [word]) != ".":
            return f"unknown option '{option}'. Did you mean --{word}.{rest}?"
    hint = did_you_mean(option, options)
    return f"unknown option '{option}'{hint} All options: lightning <command> --help."


def _wrong_value(found: re.Match[str], message: str) -> str:
    """The innermost argument is the wrong one; the others only hold it."""
    start = message.rfind("Parser key", 0, max(found.end(), message.rfind("Parser key") + 20))
    block = re.split(r"(?:Given|Got) value: ", message[start:], maxsplit=1)
    keys, _ = _place(message, start + 15 + len(message[start:].split('"')[1]))
    value = _shown((block[1] if len(block) > 1 else "").splitlines()[0].partition(". Got value: ")[0].strip())
    choices = [word.strip(" '\"") for listed in re.findall(r"typing\.Literal\[(.*?)\](?=[.\n])", block[0].partition("Errors:")[2] or block[0])
               for word in listed.split(",")]  # fmt: skip
    kinds = [kind.rpartition(".")[2] for kind in re.findall(r"Expected an? <class '([\w.]+)'>", block[0])]
    wanted = [_PLAIN.get(kind, kind) for kind in kinds if kind != "NoneType"]
    bases = re.findall(r"(?:Not a valid subclass of|does not correspond to a subclass of) (\w+)", block[0])
    wanted += [f"the name of a {base}" for base in bases]
    if choices:
        wanted.append(f"one of {', '.join(dict.fromkeys(choices))}")
    expected = " or ".join(dict.fromkeys(wanted)) or "a class by its name or path (package.module.Class)"
    return f"{'.'.join(keys)} must be {expected}, but is '{value}'{did_you_mean(value, choices)}"


def _shown(value: str) -> str:
    """A value as it was typed, without the parser's own containers."""
    nested = re.match(r"NestedArg\(key='[^']*', val=(.*)\)$", value)
    kind = re.match(r"Namespace\(class_path='(?:[\w.]+\.)?(\w+)'", value)
    return nested[1].strip("'") if nested else kind[1] if kind else value


def _missing_argument(found: re.Match[str], message: str) -> str:
    (keys, outer), names = _place(message, found.start(1)), found[2].split(", ")
    kind = f" {outer.__name__}" if outer is not None else ""
    given = " and ".join(f"--{'.'.join(keys)}.{name}" for name in names)
    return f"{keys[-1].rpartition('.')[2]}{kind} needs {' and '.join(names)}: give {given}."


def _abstract(found: re.Match[str], message: str) -> str:
    keys, outer = _place(message, message.find("Problem with"))
    return f"the class for {'.'.join(keys)} is a base that cannot be built itself: give one of {', '.join(_known(keys, outer))}."


def _no_such_class(found: re.Match[str], message: str) -> str:
    kinds = [word for word, value in vars(importlib.import_module(found[1])).items() if isinstance(value, type)]
    return f"module {found[1]} has no class '{found[2]}'{did_you_mean(found[2], kinds)}"


def _missing(found: re.Match[str], message: str) -> str:
    names = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
    return (
        f"{' and '.join(names)} missing: give --config FILE (such as configs/maml.yaml) or --{' and --'.join(names)}."
    )


_EXPLANATIONS: list[tuple[str, Callable[..., str]]] = [
    (
        r"(?:File does not exist|Path is not a file): '([^']*)'",
        lambda m, _: f"config file '{m[1]}' does not exist or is a folder.",
    ),
    (r"given class_path '[\w.]+':(\s*)the following arguments are required: ([\w, ]+)", _missing_argument),
    (r"callable class:(\s*)the following arguments are required: ([\w, ]+)", _missing_argument),
    (r"Option '([^']*)' is not accepted", _unknown_argument),
    (r"module '([\w.]+)' has no attribute '(\w+)'", _no_such_class),
    (r"Expected an instantiatable class, but[\w ]* is abstract", _abstract),
    (r"argument (?:-\w/)?(\S+): expected one argument", lambda m, _: f"{m[1]} needs a value."),
    (r'^Parser key "config": (--config.*)$', lambda m, _: m[1]),
    (r'^Parser key "config": ', lambda *_: "--config must be a YAML file, or sections with their values in braces."),
    (r"(?:does not accept option|unrecognized arguments:) '?([^']*)", _unknown_option),
    (
        r"No module named '([^']*)'",
        lambda m, _: f"no module '{m[1]}' can be imported: install it, or start where it is.",
    ),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (r"Expected an? \S|Does not validate against any", _wrong_value),
    (r"the following arguments are required: (.*)", _missing),
    (
        r"invalid choice: '([^']*)'",
        lambda m, _: f"unknown command '{m[1]}'{did_you_mean(m[1], _COMMANDS)} Known: {', '.join(_COMMANDS)}.",
    ),
    (r'expected "subcommand"', lambda *_: "no command given: use fit, validate, test or predict (lightning --help)."),
]
