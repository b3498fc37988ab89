"""The argument parser's complaints, put into one sentence with the nearest name and the known ones."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jsonargparse import _postponed_annotations
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from metatransfer.checks import did_you_mean

_CALLED_WITH = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
_PLAIN = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "list": "a list",
    "dict": "names with values",
    "tuple": "a list",
    "collections.abc.Iterable": "a list",
    "collections.abc.Sequence": "a list",
}
_UNION = (
    r'Parser key "([\w.]+)":\s+(?:- Expected a path[^\n]*\s+- )?Does not validate against any'
    r"((?:(?!Parser key)[\s\S])*?)Given value: ([^\n]*)"
)
_SHOWN = 16  # more names than this are no help to anyone


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
    return _in_one_line(message)


def explain_exception(message: str) -> str:
    """One sentence out of what Lightning or torch raises at a setting.

    Args:
        message: the exception's words.

    Returns:
        What was expected, what came, and what to do.
    """
    for pattern, explanation in _EXCEPTIONS:
        found = re.search(pattern, message)
        if found:
            return explanation(found)
    return _in_one_line(message)


def _in_one_line(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines) + ("" if lines and lines[-1].endswith((".", "?", "!")) else ".")


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
    if re.search(r"callable class:\s*$", message[:before]):  # an optimiser, say: it is named behind its problem only
        paths = re.findall(r"class_path='([\w.]+)'", message[before:])[:1]
    else:
        paths = re.findall(r"Problem with given class_path '([\w.]+)'", message[:before])
    try:
        found = import_class(paths[-1]) if paths else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _keys(message: str, before: int) -> list[str]:
    """The arguments, from the outermost inwards, that the parser was looking at, at a place of the report."""
    keys: list[tuple[int, str]] = []
    for found in re.finditer(r'^([ \t-]*)(?:.*: )?Parser key "([\w.]+)"', message[:before], re.MULTILINE):
        while keys and keys[-1][0] >= len(found[1]):  # a neighbour's, not an outer one
            keys.pop()
        keys.append((len(found[1]), found[2]))
    return [key for _, key in keys]


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


def _hints(kind: type) -> dict[str, Any]:
    """The types of a class's arguments, also those that it imports for type checking alone, as the parser sees them."""
    found = _postponed_annotations.get_types(kind.__init__)  # type: ignore[misc]
    return {name: hint for name, hint in found.items() if not isinstance(hint, Exception)}


def _known_classes(key: str, message: str, before: int) -> dict[str, type]:
    roots: dict[str, list[type]] = {"model": [LightningModule], "data": [LightningDataModule]}
    bases = roots.get(key, [])
    outer = Trainer if key.startswith("trainer.") else _outer_class(message, before)
    if outer is not None:
        hints = _hints(outer)
        bases = _classes_in(hints.get(key.rpartition(".")[2]))
    known: dict[str, type] = {}
    for base in bases:
        known |= subclasses(base)
    return {name: kind for name, kind in known.items() if _is_public(kind)}


def _public_subclasses(base: type) -> dict[str, type]:
    return {name: kind for name, kind in subclasses(base).items() if _is_public(kind)}


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class with those that it hands on to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__[:-1]):
        if "__init__" in vars(base):
            found |= inspect.signature(base.__init__).parameters  # type: ignore[misc]
    return found


def refused_null(kind: type, name: str) -> bool:
    """Whether an argument of a class cannot be null; the parser lets null pass anywhere.

    Args:
        kind: the class.
        name: of the argument.

    Returns:
        ``True`` where its annotation says so.
    """
    parameter = _parameters(kind).get(name)
    if parameter is None or parameter.default is None or parameter.annotation is inspect.Parameter.empty:
        return False
    own = (base for base in kind.__mro__ if "__init__" in vars(base))
    owner = next(base for base in own if name in inspect.signature(vars(base)["__init__"]).parameters)
    hint = _hints(owner).get(name)
    return hint is not Any and hint is not None and type(None) not in typing.get_args(hint)


def _is_public(kind: type) -> bool:
    """Whether a class is meant for users: Lightning's demos and inner parts are not."""
    parts = kind.__module__.split(".")
    if parts[0] != "lightning":
        return True
    return parts[2:3] != ["demos"] and hasattr(importlib.import_module(".".join(parts[:3])), kind.__name__)


def _unknown_class(found: re.Match[str], message: str, options: list[str]) -> str:
    name = found[1]
    keys = _keys(message, found.start())
    choices = message[message.rfind("Errors:", 0, found.start()) :]
    kinds = re.findall(r"Expected an? <class '(int|float)'>", choices[: choices.find("Given value")])
    if kinds:  # a number, for which torch also takes a tensor
        return (
            f"{'.'.join(keys)} must be {' or '.join(_PLAIN[kind] for kind in dict.fromkeys(kinds))}, but is '{name}'."
        )
    key = keys[-1] if keys else "class"
    known = _known_classes(key, message, found.start())
    hint, names = did_you_mean(name, known), ", ".join(known) if known else "none"
    shown = f" Known: {names}; your own" if hint == "." or len(known) <= _SHOWN else " Your own"
    return (
        f"unknown class '{name}' for {key.rpartition('.')[2]}{hint}{shown} by its import path (package.module.Class)."
    )


def _no_such_class(found: re.Match[str], message: str, options: list[str]) -> str:
    module, name = found[1], found[2]
    kinds = [word for word, value in vars(importlib.import_module(module)).items() if isinstance(value, type)]
    return f"module {module} has no class '{name}'{did_you_mean(name, kinds)}"


def _abstract(found: re.Match[str], message: str, options: list[str]) -> str:
    keys = _keys(message, found.start())
    known = _known_classes(keys[-1], message, found.start())
    return f"the class for {'.'.join(keys)} is a base that cannot be built itself: give one of {', '.join(known)}."


def _unknown_argument(found: re.Match[str], message: str, options: list[str]) -> str:
    outer = _outer_class(message, found.start())
    if outer is None:
        return f"unknown argument '{found[1]}'."
    # what an optimiser or a scheduler works on is not the user's to give
    hidden = ("args", "kwargs", "params", "optimizer") if issubclass(outer, _CALLED_WITH) else ("args", "kwargs")
    known = [name for name in inspect.signature(outer).parameters if name not in hidden]
    keys = ".".join(_keys(message, found.start()))
    if not known and keys:  # the base, which stands for whatever class is meant
        ends = {name: kind for name, kind in _public_subclasses(outer).items() if not kind.__subclasses__()}
        meant = [name for name, kind in ends.items() if found[1] in _parameters(kind)]
        example = meant[0] if meant else "package.module.Class"
        return f"'{found[1]}' belongs to a class that is not named: give it first, such as --{keys} {example}."
    return f"{outer.__name__} has no argument '{found[1]}'{did_you_mean(found[1], known)} Known: {', '.join(known)}."


def _unknown_option(found: re.Match[str], message: str, options: list[str]) -> str:
    option = found[1].split()[0].split("=")[0]
    if option.endswith((".yaml", ".yml")):
        return f"'{option}' stands alone: give --config {option}."
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
    expected, value = found[1], found[2].partition(". Got value: ")[0].strip()
    key = ".".join(_keys(message, found.start()))
    literal = re.search(r"Literal\[(.*)\]", expected)
    if literal:
        choices = [choice.strip(" '\"") for choice in literal[1].split(",")]
        return f"{key} must be one of {', '.join(choices)}, but is '{value}'{did_you_mean(value, choices)}"
    kind = expected.removeprefix("<class '").removesuffix("'>")
    return f"{key} must be {_PLAIN.get(kind, kind)}, but is '{_shown(value)}'."


def _wrong_union(found: re.Match[str], message: str, options: list[str]) -> str:
    *_, inner = re.finditer(_UNION, message)  # the innermost is what is wrong, the others only hold it
    key, tried, value = ".".join([*_keys(message, inner.start()), inner[1]]), inner[2], _shown(inner[3].strip())
    kinds = re.findall(r"Expected an? <class '([\w.]+)'>", tried)
    choices = [word.strip(" '\"") for listed in re.findall(r"Expected an? typing.Literal\[(.*)\]", tried)
               for word in listed.split(",")]  # fmt: skip
    wanted = [_PLAIN.get(kind, kind) for kind in kinds if kind != "NoneType"]
    classes = r"(?:Not a valid subclass of|does not correspond to a subclass of) (\w+)"
    wanted += [f"the name of a {name}" for name in re.findall(classes, tried)]
    if choices:
        wanted.append(f"one of {', '.join(dict.fromkeys(choices))}")
    expected = " or ".join(dict.fromkeys(wanted)) or "a class by its name or import path (package.module.Class)"
    return f"{key} must be {expected}, but is '{value}'{did_you_mean(value, choices)}"


def _shown(value: str) -> str:
    """A value as the user gave it: the parser's own containers say nothing to anyone."""
    nested = re.match(r"NestedArg\(key='([^']*)', val=(.*)\)$", value)
    if nested:
        return nested[2].strip("'")
    kind = re.match(r"Namespace\(class_path='([\w.]+)'", value)
    if kind:
        return kind[1].rpartition(".")[2]
    return re.sub(r"Namespace\((.*)\)$", r"\1", value)


def _ambiguous(found: re.Match[str], message: str, options: list[str]) -> str:
    paths = found[2].split(", ")
    example = paths[-1]  # Lightning's own ReduceLROnPlateau is the one that knows what to monitor, and comes last
    return (
        f"several classes are called {found[1]}: give one by its full path, {' or '.join(paths)} (such as {example})."
    )


def _missing_argument(found: re.Match[str], message: str, options: list[str]) -> str:
    """Of a class, deeper inside."""
    outer = _outer_class(message, found.start(1))
    names, keys = [name.strip() for name in found[2].split(",")], _keys(message, found.start())
    kind = f" {outer.__name__}" if outer is not None else ""
    given = " and ".join(f"--{'.'.join(keys)}.{name}" for name in names)
    return f"{keys[-1].rpartition('.')[2]}{kind} needs {' and '.join(names)}: give {given}."


def _missing(found: re.Match[str], message: str, options: list[str]) -> str:
    names = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
    return (
        f"{' and '.join(names)} missing: give --config FILE (such as configs/maml.yaml) or --{' and --'.join(names)}."
    )


_EXPLANATIONS: list[tuple[str, Callable[[re.Match[str], str, list[str]], str]]] = [
    (r"File does not exist: '([^']*)'", lambda m, *_: f"config file '{m[1]}' does not exist."),
    (r"Path is not a file: '([^']*)'", lambda m, *_: f"config file '{m[1]}' is a folder, but must be a file."),
    (r"Multiple subclasses with name (\S+)\. Give the full class path to avoid ambiguity: ([^\n]*)\.", _ambiguous),
    (
        r"(?:given class_path '[\w.]+':|callable class:)(\s*)the following arguments are required: ([\w, ]+)",
        _missing_argument,
    ),
    (r"Option '([^']*)' is not accepted", _unknown_argument),
    (r"module '([\w.]+)' has no attribute '(\w+)'", _no_such_class),
    (r"Expected an instantiatable class, but[\w ]* is abstract", _abstract),
    (r"argument (?:-\w/)?(\S+): expected one argument", lambda m, *_: f"{m[1]} needs a value."),
    (r'^Parser key "config": (--config.*)$', lambda m, *_: m[1]),
    (
        r'Unexpected config:|Problems parsing config:|^Parser key "config": while ',
        lambda *_: "--config must be a YAML file, or sections with their values in braces.",
    ),
    (
        r"Parser key \"(\w+)\":\s*Unable to load config ['\"]([^'\"]*)",
        lambda m, *_: f"{m[1]} must be names with values, or a YAML file of them, but is '{m[2]}'.",
    ),
    (r"does not accept option '([^']*)'", _unknown_option),
    (r"unrecognized arguments: (.*)", _unknown_option),
    (
        r"No module named '([^']*)'",
        lambda m, *_: f"no module '{m[1]}' can be imported: install it, or start where it is.",
    ),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (r"Expected an? (\S[^\n]*?)\. Got value: ([^\n]*)", _wrong_value),
    (_UNION, _wrong_union),
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


_EXCEPTIONS: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"must include a monitor when a `ReduceLROnPlateau` scheduler is used",
        lambda *_: (
            "torch's ReduceLROnPlateau does not know what to monitor: give --model.lr_scheduler ReduceLROnPlateau "
            "--model.lr_scheduler.monitor val/loss, without a path."
        ),
    ),
    (
        r"^Invalid ([\w ]+?)(?: value)?: (\S+)$",
        lambda m: f"the optimizer refuses {m[2]} as its {m[1]}: see --model.optimizer.help.",
    ),
    (
        r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\)",
        lambda m: (
            f"trainer.val_check_interval is {m[1]}, but an epoch has only {m[2]} batches: lower it, or count over "
            "epochs with --trainer.check_val_every_n_epoch null."
        ),
    ),
]
