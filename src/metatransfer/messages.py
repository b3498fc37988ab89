"""The argument parser's complaints, put into one sentence with the nearest name and the known ones."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from metatransfer.checks import did_you_mean

_PLAIN = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a word"}


def explain(message: str, options: Iterable[str] = ()) -> str:
    """One sentence out of a report of jsonargparse.

    Args:
        message: the report.
        options: command-line options that exist.

    Returns:
        What was expected, what came, and what to do.
    """
    for pattern, explanation in _EXPLANATIONS:
        found = re.search(pattern, message)
        if found:
            return explanation(found, message, list(options))
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines) + ("" if lines and lines[-1].endswith(".") else ".")


def subclasses(base: type) -> dict[str, type]:
    """Every concrete class below ``base`` that is imported and public, by its short name.

    Args:
        base: the base class.

    Returns:
        Grandchildren included, sorted by name.
    """
    found: dict[str, type] = {}
    stack: list[type] = list(base.__subclasses__())
    while stack:
        child = stack.pop()
        stack += child.__subclasses__()
        if not child.__name__.startswith("_") and not inspect.isabstract(child):
            found[child.__name__] = child
    return dict(sorted(found.items()))


def import_class(path: str) -> Any:  # noqa: ANN401
    """What an import path names.

    Args:
        path: ``package.module.Class``.

    Returns:
        The object.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _outer_class(message: str, before: int) -> type | None:
    """The class whose argument the parser was looking at, at a place of the report."""
    paths = re.findall(r"Problem with given class_path '([\w.]+)'", message[:before])
    try:
        found = import_class(paths[-1]) if paths else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _classes_in(hint: Any) -> list[type]:  # noqa: ANN401
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not None and issubclass(_origin(hint), Callable):  # type: ignore[arg-type]
        arguments = arguments[-1:]  # of a callable, what it returns
    if not arguments:
        return [hint] if isinstance(hint, type) and hint.__module__ not in ("builtins", "types") else []
    return [found for argument in arguments for found in _classes_in(argument)]


def _origin(hint: Any) -> type:  # noqa: ANN401
    origin = typing.get_origin(hint)
    return origin if isinstance(origin, type) else object


def _known_classes(key: str, message: str, before: int) -> dict[str, type]:
    roots: dict[str, list[type]] = {"model": [LightningModule], "data": [LightningDataModule]}
    bases = roots.get(key, [])
    outer = _outer_class(message, before)
    if outer is not None:
        hints = typing.get_type_hints(outer.__init__)  # type: ignore[misc]
        bases = _classes_in(hints.get(key))
    known: dict[str, type] = {}
    for base in bases:
        known |= subclasses(base)
    # Lightning's own demos and torchvision's samples are not what anyone means
    ours = {name: kind for name, kind in known.items() if not kind.__module__.startswith("lightning.")}
    return ours or known


def _unknown_class(found: re.Match[str], message: str, options: list[str]) -> str:
    name = found[1]
    keys = re.findall(r'Parser key "([\w.]+)"', message[: found.start()])
    key = keys[-1].rpartition(".")[2] if keys else "class"
    known = _known_classes(key, message, found.start())
    names = ", ".join(known) if known else "none"
    hint = did_you_mean(name, known)
    return f"unknown class '{name}' for {key}{hint} Known: {names}; your own by its import path (package.module.Class)."


def _unknown_argument(found: re.Match[str], message: str, options: list[str]) -> str:
    outer = _outer_class(message, found.start())
    if outer is None:
        return f"unknown argument '{found[1]}'."
    known = [name for name in inspect.signature(outer).parameters if name not in ("args", "kwargs")]
    return f"{outer.__name__} has no argument '{found[1]}'{did_you_mean(found[1], known)} Known: {', '.join(known)}."


def _unknown_option(found: re.Match[str], message: str, options: list[str]) -> str:
    option = found[1].split()[0].split("=")[0]
    # one section's options are enough: all of them would fill the screen
    section, dot, rest = option.lstrip("-").partition(".")
    sections = ("model", "data", "trainer", "checkpoint")
    if dot and section not in sections:  # what follows "model." depends on the class, so it is not among the options
        meant = did_you_mean(section, sections).removeprefix(". Did you mean ").removesuffix("?")
        if meant in sections:
            return f"unknown option '{option}'. Did you mean --{meant}.{rest}?"
    near = did_you_mean(option.lstrip("-"), [name.lstrip("-") for name in options])
    if near != ".":
        near = near.replace("mean ", "mean --", 1)
    return f"unknown option '{option}'{near} All options: lightning <command> --help."


def _wrong_value(found: re.Match[str], message: str, options: list[str]) -> str:
    expected, value = found[1], found[2].strip()
    keys = re.findall(r'Parser key "([\w.]+)"', message[: found.start()])
    literal = re.search(r"Literal\[(.*)\]", expected)
    if literal:
        choices = [choice.strip(" '\"") for choice in literal[1].split(",")]
        return f"{keys[-1]} must be one of {', '.join(choices)}, but is '{value}'{did_you_mean(value, choices)}"
    kind = expected.removeprefix("<class '").removesuffix("'>")
    return f"{keys[-1]} must be {_PLAIN.get(kind, kind)}, but is '{value}'."


def _wrong_union(found: re.Match[str], message: str, options: list[str]) -> str:
    value = found[2].strip()
    kinds = re.findall(r"Expected an? <class '([\w.]+)'>", message)
    choices = [word.strip(" '\"") for listed in re.findall(r"Expected an? typing.Literal\[(.*)\]", message)
               for word in listed.split(",")]  # fmt: skip
    wanted = [_PLAIN.get(kind, kind) for kind in dict.fromkeys(kinds) if kind != "NoneType"]
    if choices:
        wanted.append(f"one of {', '.join(dict.fromkeys(choices))}")
    return (
        f"{found[1]} must be {' or '.join(wanted) or 'something else'}, but is '{value}'{did_you_mean(value, choices)}"
    )


def _ambiguous(found: re.Match[str], message: str, options: list[str]) -> str:
    paths = found[2].split(", ")
    example = paths[-1]  # Lightning's own ReduceLROnPlateau is the one that knows what to monitor, and comes last
    return (
        f"several classes are called {found[1]}: give one by its full path, {' or '.join(paths)} (such as {example})."
    )


def _missing(found: re.Match[str], message: str, options: list[str]) -> str:
    names = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
    return (
        f"{' and '.join(names)} missing: give --config FILE (such as configs/maml.yaml) or --{' and --'.join(names)}."
    )


_EXPLANATIONS: list[tuple[str, Callable[[re.Match[str], str, list[str]], str]]] = [
    (r"File does not exist: '([^']*)'", lambda m, *_: f"config file '{m[1]}' does not exist."),
    (r"Path is not a file: '([^']*)'", lambda m, *_: f"config file '{m[1]}' is a folder, but must be a file."),
    (r"Multiple subclasses with name (\S+)\. Give the full class path to avoid ambiguity: ([^\n]*)\.", _ambiguous),
    (r"Option '([^']*)' is not accepted", _unknown_argument),
    (r"does not accept option '([^']*)'", _unknown_option),
    (r"unrecognized arguments: (.*)", _unknown_option),
    (
        r"No module named '([^']*)'",
        lambda m, *_: f"no module '{m[1]}' can be imported: install it, or start where it is.",
    ),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (r"Expected an? (\S[^\n]*?)\. Got value: ([^\n]*)", _wrong_value),
    (r'Parser key "([\w.]+)":\s+Does not validate against any[\s\S]*Given value: ([^\n]*)', _wrong_union),
    (r"the following arguments are required: (.*)", _missing),
    (r"invalid choice: '([^']*)'", lambda m, *_: _command(m[1])),
    (
        r'expected "subcommand"',
        lambda *_: "no command given: use fit, validate, test or predict (see lightning --help).",
    ),
]


def _command(word: str) -> str:
    commands = ("fit", "validate", "test", "predict")
    return f"unknown command '{word}'{did_you_mean(word, commands)} Known: {', '.join(commands)}."
