"""Checks of configuration files before they are parsed."""

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from metatransfer.errors import UserError
from metatransfer.storage import short_path
from metatransfer.trust import KNOWN_PACKAGES

_SECTIONS = ("trainer", "checkpoint", "model", "data")
_OF_CLASS = ("class_path", "init_args", "dict_kwargs", "<<")
_COMMANDS = ("fit", "validate", "test", "predict")
# a usual configuration has some hundred values, nested up to ten deep
_MOST_CHARACTERS, _MOST_VALUES, _DEEPEST, _LONGEST_NUMBER = 1_000_000, 100_000, 50, 1_000


def packaged_configs() -> dict[str, str]:
    """The configurations that come with the package: their paths by name, such as ``omniglot/protonet``."""
    package = Path(__file__).parents[1]
    root = next(filter(Path.is_dir, (package / "configs", package.parents[1] / "configs")), package / "configs")
    return {path.relative_to(root).with_suffix("").as_posix(): str(path) for path in sorted(root.rglob("*.yaml"))}


def check_limits(text: str, name: str) -> None:
    """Raises an error for a YAML text that would take very long to parse."""
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{name} has {len(text)} characters, but at most {_MOST_CHARACTERS} are allowed.")
    if re.search(rf"(?<![\d_])[\d_]{{{_LONGEST_NUMBER}}}", text):
        raise UserError(f"{name} has a number of more than {_LONGEST_NUMBER} digits: check it.")
    if re.search(r"[\[{&]", text):
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return  # invalid YAML: its parser has the better error message
        except RecursionError:
            raise _too_deep(name) from None
        if root is not None:
            _check_size(root, name, {})


def _check_size(node: yaml.Node, name: str, sizes: dict[int, int], depth: int = 0) -> int:
    """The number of values in a node with its anchors expanded, by node in ``sizes``."""
    if depth > _DEEPEST:
        raise _too_deep(name)
    if id(node) not in sizes:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        sizes[id(node)] = 1 + sum(_check_size(part, name, sizes, depth + 1) for part in parts)
    if sizes[id(node)] > _MOST_VALUES:
        raise UserError(f"{name} has more than {_MOST_VALUES} values after its anchors are expanded: use fewer.")
    return sizes[id(node)]


def _too_deep(name: str) -> UserError:
    return UserError(
        f"{name} is nested more than {_DEEPEST} levels deep, or an anchor contains itself: check its brackets."
    )


def check_config(path: str | Path) -> None:
    """Raises an error if a configuration file is not a YAML file of sections."""
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"config file '{path}', line {line}: this is not UTF-8 text; give a YAML file.") from error
    check_config_text(text, f"config file '{path}'")


def check_config_text(text: str, name: str) -> None:
    """:func:`check_config` for a text."""
    check_limits(text, name)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{name}, line {line}: this is not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not a text file: give a YAML file.") from error
    if root is None:
        raise UserError(f"{name} is empty: it must have sections such as trainer, model and data.")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name} must have sections such as trainer, model and data, but has {_described(root)}.")
    _check_sections(root, name)
    _check_names(root, name)


def _check_sections(root: yaml.MappingNode, name: str) -> None:
    for key, value in root.value:
        if key.value in _COMMANDS and isinstance(value, yaml.MappingNode):
            _check_sections(value, name)
        of_class = key.value in ("model", "data")
        as_word = of_class and value.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:null")
        if key.value in _SECTIONS and not (isinstance(value, yaml.MappingNode) or as_word):
            kind = "a class or names with values" if of_class else "names with values"
            where = f"{name}, line {value.start_mark.line + 1}"
            raise UserError(f"{where}: section '{key.value}' must have {kind}, but has {_described(value)}.")


def _check_names(node: yaml.Node, name: str) -> None:
    # YAML silently keeps the last of two values; with arguments beside class_path, the parser would not find the class
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_names(value, name)
    if not isinstance(node, yaml.MappingNode):
        return
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for index, (key, value) in enumerate(node.value):
        where = f"{name}, line {key.start_mark.line + 1}"
        if key.value in names[:index] and key.value != "<<":
            raise UserError(f"{where}: '{key.value}' appears twice in its section: keep one of the two.")
        if "class_path" in names and key.value not in _OF_CLASS:
            raise UserError(
                f"{where}: '{key.value}' is beside class_path, but the arguments of a class belong under init_args."
            )
        _check_names(value, name)


def _described(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"only '{str(node.value)[:40]}'" if node.value else "nothing"


def check_known(value: Any, file: Path) -> None:  # noqa: ANN401
    """Raises an error if a configuration that the user has not named could make the parser import an unknown package.

    Like the classes of a checkpoint, those of the configuration beside it must be of a known package or one that is
    already imported. The parser takes texts for import paths, for YAML, and for the names of YAML files.

    Args:
        value: content of the file as YAML has it, before it is parsed.
        file: the configuration.

    Raises:
        UserError: an unknown package is named.
    """
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        check_known(item, file)
    if not isinstance(value, str):
        return
    content = _text_of_file(value)
    inner = _yaml(value if content is None else content, f"'{short_path(file)}'")
    if _is_unknown(value) or _is_unknown(inner) or (content is not None and isinstance(inner, dict | list)):
        raise UserError(
            f"'{short_path(file)}', found beside the checkpoint, names '{value.strip()[:80]}', which could run code "
            f"of an unknown package: read the file, and if you trust it, give --config {short_path(file)}."
        )
    if not isinstance(inner, str):
        check_known(inner, file)


def _is_unknown(value: object) -> bool:
    """Whether a text is the import path of something in a package that is neither known nor imported."""
    package, dot, _ = str(value).strip().partition(".")
    if not dot or not package.isidentifier() or package in KNOWN_PACKAGES or package in sys.modules:
        return False
    spec = find_spec(package)
    of_python = package in sys.stdlib_module_names  # a file test.csv is no import, but a test.py here would be one
    return spec is not None and not (of_python and Path(spec.origin or "").is_relative_to(Path(os.__file__).parent))


def _text_of_file(name: str) -> str | None:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no name of a file, not UTF-8, or no such user
        path = Path(name).expanduser()
        if path.is_file() and path.stat().st_size <= _MOST_CHARACTERS:  # tables that are larger take long to parse
            return path.read_text(encoding="utf-8")
    return None


def _yaml(text: str, name: str) -> object:
    check_limits(text, name)
    with contextlib.suppress(yaml.YAMLError, ValueError):  # the parser reads it as a text, too
        return yaml.safe_load(text)
    return text
