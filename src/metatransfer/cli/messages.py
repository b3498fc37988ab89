"""Rewrites the parser's messages about frequent mistakes as one sentence, with the closest name as a suggestion."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pydoc import locate
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from metatransfer.checks import did_you_mean
from metatransfer.cli.classes import classes_in, parameters, subclasses, type_of
from metatransfer.cli.commands import command_names
from metatransfer.cli.config_files import packaged_configs

_PLAIN = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a word", "list": "a list",
          "dict": "names with values", "tuple": "a list", "Iterable": "a list", "Sequence": "a list"}  # fmt: skip
_SECTIONS: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
_COMMANDS = ("fit", "validate", "test", "predict")
_VARIADIC = ("args", "kwargs")
_SHOWN = 16  # a longer list of names does not help


def explain(message: str, options: Iterable[str] = ()) -> str:
    """One sentence about a mistake on the command line, or about a setting that Lightning or torch does not accept."""
    for pattern, explanation in _EXPLANATIONS:
        found = re.search(pattern, message)
        if found:
            return explanation(found, options if explanation is _unknown_option else message)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines) + ("" if lines and lines[-1].endswith((".", "?", "!")) else ".")


def _place(message: str, before: int) -> tuple[list[str], type | None]:
    """The arguments, outermost first, and the class that a part of the parser's message is about."""
    keys: list[tuple[int, str]] = []
    for found in re.finditer(r'^([ \t-]*)(?:.*: )?Parser key "([\w.]+)"', message[:before], re.MULTILINE):
        while keys and keys[-1][0] >= len(found[1]):  # a sibling, not a parent
            keys.pop()
        keys.append((len(found[1]), found[2]))
    if re.search(r"callable class:\s*$", message[:before]):  # e.g. an optimiser, which is named after its problem
        paths = re.findall(r"class_path='([\w.]+)'", message[before:])[:1]
    else:
        paths = re.findall(r"Problem with given class_path '([\w.]+)'", message[:before])[-1:]
    outer = locate(paths[0]) if paths else Trainer if keys and keys[0][1].startswith("trainer") else None
    return [key for _, key in keys], outer if isinstance(outer, type) else None


def _known(keys: list[str], outer: type | None) -> list[str]:
    """The names of the classes that an argument can be."""
    key = keys[-1].rpartition(".")[2] if keys else ""
    bases = [_SECTIONS[key]] if key in _SECTIONS else classes_in(type_of(outer, key)) if outer is not None else []
    return sorted({name for base in bases for name in subclasses(base)})


def _unknown_class(found: re.Match[str], message: str) -> str:
    if re.search(r"Expected an? <class '(int|float)'>", message[message.rfind("Parser key", 0, found.start()) :]):
        return _wrong_value(found, message)  # a number, for which torch also accepts a tensor
    keys, outer = _place(message, found.start())
    known, key = _known(keys, outer), keys[-1].rpartition(".")[2] if keys else "class"
    if outer is not None and type_of(outer, key) is None:  # imported for type checking only, but the parser found it
        near = message[message.rfind("Parser key", 0, found.start()) : found.start()]
        bases: list[Any] = [locate(path) for path in re.findall(r"<class '([\w.]+\.\w+)'>", near)]
        known = sorted({name for base in bases for name in subclasses(base)})
    hint = did_you_mean(found[1], known)
    names = f" Known: {', '.join(known)}." if known and (hint == "." or len(known) <= _SHOWN) else ""
    own = " For a class of your own, give its import path (package.module.Class)."
    own += " For data, give a file or folder that exists." if key == "source" else ""
    return f"unknown class '{found[1]}' for {key}{hint}{names}{own}"


def _unknown_argument(found: re.Match[str], message: str) -> str:
    keys, outer = _place(message, found.start())
    # users cannot give what an optimiser or a scheduler works on
    hidden = (*_VARIADIC, "params", *["optimizer"] * (outer is None or not issubclass(outer, LightningModule)))
    known = [name for name in parameters(outer) if name not in hidden] if outer is not None else []
    if outer is None or not known:  # an abstract base
        return f"unknown argument '{found[1]}': give the class first, for example --{'.'.join(keys)} CLASS."
    return f"{outer.__name__} has no argument '{found[1]}'{did_you_mean(found[1], known)} Known: {', '.join(known)}."


def _unknown_inside(found: re.Match[str], message: str) -> str:
    """An option such as ``inner.stepps`` that the class of a section does not have."""
    keys, outer = _place(message, found.end())
    section = f"--{'.'.join(keys)}."
    if outer is None:
        return f"unknown option '{section}{found[1]}'. All options: lightning <command> --help."
    groups = {name: classes_in(type_of(outer, name)) for name in parameters(outer) if name not in _VARIADIC}
    fields = [f"{name}.{one.name}" for name, kinds in groups.items() for kind in kinds if dataclasses.is_dataclass(kind)
              for one in dataclasses.fields(kind)]  # fmt: skip
    hint = did_you_mean(found[1], fields).replace("mean ", f"mean {section}")
    return f"unknown option '{section}{found[1]}'{hint} {outer.__name__} has {', '.join(groups)}."


def _unknown_option(found: re.Match[str], options: Iterable[str]) -> str:
    option = found[1].split()[0].split("=")[0]
    if option.endswith((".yaml", ".yml")):
        return f"unexpected argument '{option}'. Did you mean --config {option}?"
    section, dot, rest = option.lstrip("-").partition(".")
    for word in _SECTIONS:  # the rest depends on the class, so it is not in the list of options
        if dot and did_you_mean(section, [word]) != ".":
            return f"unknown option '{option}'. Did you mean --{word}.{rest}?"
    return f"unknown option '{option}'{did_you_mean(option, options)} All options: lightning <command> --help."


def _wrong_value(found: re.Match[str], message: str) -> str:
    """Only the innermost argument is wrong."""
    *_, inner = re.finditer(r'Parser key "[\w.]+"', message)
    expected, _, given = re.sub("Given value: ", "Got value: ", message[inner.start() :]).partition("Got value: ")
    value = _shown(given.partition("\n")[0].partition(". Got value: ")[0].strip())
    expected = expected.partition("Errors:")[2] or expected
    listed = re.findall(r"typing\.Literal\[(.*?)\]", expected)
    choices = list(dict.fromkeys(word.strip(" '\"") for words in listed for word in words.split(",")))
    kinds = [kind.rpartition(".")[2] for kind in re.findall(r"Expected an? <class '([\w.]+)'>", expected)]
    wanted = [_PLAIN.get(kind, kind) for kind in kinds if kind != "NoneType"]
    wanted += [f"the name of a {base}" for base in re.findall(r"subclass of (\w+)", expected)]
    wanted += [f"one of {', '.join(choices)}"] * bool(choices)
    text = " or ".join(dict.fromkeys(wanted)) or "a class by its name or path (package.module.Class)"
    return f"{'.'.join(_place(message, inner.end())[0])} must be {text}, but is '{value}'{did_you_mean(value, choices)}"


def _shown(value: str) -> str:
    """A value as the user typed it, without the parser's containers."""
    nested = re.match(r"NestedArg\(key='[^']*', val=(.*)\)$", value)
    kind = re.match(r"Namespace\(class_path='(?:[\w.]+\.)?(\w+)'", value)
    return nested[1].strip("'") if nested else kind[1] if kind else value


def _missing_argument(found: re.Match[str], message: str) -> str:
    (keys, outer), names = _place(message, found.start(1)), found[2].split(", ")
    given = " and ".join(f"--{'.'.join(keys)}.{name}" for name in names)
    return f"{outer.__name__ if outer is not None else keys[-1]} needs {' and '.join(names)}: give {given}."


def _abstract(found: re.Match[str], message: str) -> str:
    keys, outer = _place(message, found.start())
    known = ", ".join(_known(keys, outer if len(keys) > 1 else None))
    return f"{'.'.join(keys)} must not be an abstract class: give one of {known}."


def _no_such_class(found: re.Match[str], message: str) -> str:
    known = [name for name, value in vars(import_module(found[1])).items() if isinstance(value, type)]
    return f"module {found[1]} has no class '{found[2]}'{did_you_mean(found[2], known)}"


def _no_config(path: str) -> str:
    near = did_you_mean(os.path.basename(path), packaged_configs())
    return f"config file '{path}' does not exist{': check the path.' if near == '.' else near}"


def _missing(found: re.Match[str], message: str) -> str:
    names = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
    return f"missing {' and '.join(names)}: give --config FILE or NAME (such as maml) or --{' and --'.join(names)}."


_EXPLANATIONS: list[tuple[str, Callable[[re.Match[str], Any], str]]] = [
    (r"File does not exist: '([^']*)'", lambda m, _: _no_config(m[1])),
    (r"Path is not a file: '([^']*)'", lambda m, _: f"config file '{m[1]}' is a folder, but must be a file."),
    (
        r"(?:class_path '[\w.]+'|callable class):(\s*)the following arguments are required: ([\w., ]+)",
        _missing_argument,
    ),
    (r"Option '([^']*)' is not accepted", _unknown_argument),
    (r"module '([\w.]+)' has no attribute '(\w+)'", _no_such_class),
    (r"Expected an instantiatable class, but[\w ]* is abstract", _abstract),
    (r"argument (?:-\w/)?(\S+): expected one argument", lambda m, _: f"{m[1]} requires a value."),
    (r'^Parser key "config": (--config.*)$', lambda m, _: m[1]),
    (r'^Parser key "config": ', lambda *_: "--config must be a YAML file, or sections with their values in braces."),
    (r"Problem with given class_path '[\w.]+':\s+unrecognized arguments: --([\w.]+)", _unknown_inside),
    (r"(?:does not accept option|unrecognized arguments:) '?([^']*)", _unknown_option),
    (r"No module named '([^']*)'", lambda m, _: f"no module '{m[1]}': install it, or start in its folder."),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (
        r"Parser key \"(\w+)\":\s+Unable to load config '([^']*)'",
        lambda m, _: f"{m[1]} must be a section of names with values, or a YAML file, but is '{m[2]}'.",
    ),
    (r"Parser key [\s\S]*(?:Expected an? \S|Does not validate against any)", _wrong_value),
    (r"the following arguments are required: (.*)", _missing),
    (
        r"invalid choice: '([^']*)'",
        lambda m, _: f"unknown command '{m[1]}'{did_you_mean(m[1], [*_COMMANDS, *command_names()])}",
    ),
    (
        r"must include a monitor when a `ReduceLROnPlateau` scheduler is used",
        lambda *_: (
            "torch's ReduceLROnPlateau does not know what to monitor: give --model.lr_scheduler "
            "ReduceLROnPlateau --model.lr_scheduler.monitor val/loss, without a path."
        ),
    ),
    (
        r"`val_check_interval` \((\d+)\) must be less than .* batches \((\d+)\)",
        lambda m, _: (
            f"trainer.val_check_interval is {m[1]}, but an epoch has only {m[2]} batches: lower it, or count "
            "over epochs with --trainer.check_val_every_n_epoch null."
        ),
    ),
    (r'expected "subcommand"', lambda *_: "no command given: use fit, validate, test or predict (lightning --help)."),
]
