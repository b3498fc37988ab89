"""Rewrites arguments and configurations for the parser: configurations by name, paths, ``~``, short names and null."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from lightning.pytorch.cli import ReduceLROnPlateau

import metatransfer
from metatransfer.cli.config_files import check_limits, packaged_configs

_ENDINGS = {".csv", ".tsv", ".parquet", ".npz", ".npy", ".mat", ".safetensors", ".zip"}
# not torch's class of the same name, which has no monitor
_NAMES = {"ReduceLROnPlateau": f"{ReduceLROnPlateau.__module__}.{ReduceLROnPlateau.__qualname__}"}
_NULLS = ("null", "Null", "NULL", "~")


def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
    """Rewrites the arguments of a command."""
    found: list[str] = []
    name = ""
    for argument in ("--config" if argument == "-c" else argument for argument in arguments):
        equals, value = "", argument
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            if not equals:
                found.append(argument)
                continue
        check_limits(value, f"argument '{argument[:40]}...'")
        outer, _, last = name.rpartition(".")
        if value in _NULLS and re.match(r"--(model|data)\.", outer):  # in a nested class, the parser would read 'None'
            found = found if equals else found[:-1]
            found.append(f"{outer}={json.dumps({last: None})}")
        else:
            found.append((name + equals if equals else "") + _rewrite_value(name, value))
    return found


def classes_given(arguments: Sequence[str]) -> dict[str, str]:
    """The nested classes that the command line names after its configurations: ``{"model.backbone": "Conv4"}``."""
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--") else [argument]
    found: dict[str, str] = {}
    for option, value in itertools.pairwise(words):
        described = re.match(r'(?:\{"?class_path"?: "?)?([\w.]*[A-Za-z]\w*)', value)
        if option == "--config":
            found.clear()
        elif re.match(r"--(model|data)\.", option) and described:
            found[option[2:]] = described[1]
    return found


def rewrite_config(text: str, name: str = "", replaced: Mapping[str, str] | None = None) -> str:
    """Rewrites a YAML text, and removes classes for which the command line names another class.

    The parser would keep those of their arguments that the other class has, too.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or not _rewrite_mapping(root, name, replaced or {}):
        return text
    return yaml.serialize(root, Dumper=yaml.SafeDumper)


def _rewrite_value(name: str, value: str) -> str:
    keys = name.removeprefix("--").split(".")
    if keys == ["config"]:  # its content is rewritten when it is read
        name = value.removeprefix("configs/").removesuffix(".yaml")
        return _expanded(value) if os.path.exists(value) else packaged_configs().get(name, _expanded(value))
    if value.startswith("{"):
        try:
            return rewrite_config(value, keys[-1])
        except yaml.YAMLError:
            return value  # the parser reports the error
    found = _rewritten(keys, value)
    return found if isinstance(found, str) else json.dumps(found)


def _rewrite_mapping(node: yaml.MappingNode, path: str, replaced: Mapping[str, str]) -> bool:
    """Rewrites a mapping in place."""
    changed = False
    for place, (key, value) in reversed(list(enumerate(node.value))):
        own = path if key.value == "init_args" else f"{path}.{key.value}".lstrip(".")
        if isinstance(value, yaml.MappingNode) and _is_another(value, replaced.get(own)):
            del node.value[place]
            changed = True
        elif isinstance(value, yaml.MappingNode):
            changed |= _rewrite_mapping(value, own, replaced)
        elif isinstance(value, yaml.SequenceNode):
            for item in value.value:
                changed |= isinstance(item, yaml.MappingNode) and _rewrite_mapping(item, own, replaced)
        elif value.tag == "tag:yaml.org,2002:str":
            found = _rewritten(own.split("."), value.value)
            if found != value.value:
                node.value[place] = (key, yaml.compose(json.dumps(found), Loader=yaml.SafeLoader))
                changed = True
    return changed


def _is_another(described: yaml.MappingNode, given: str | None) -> bool:
    names = [value.value.rpartition(".")[2] for key, value in described.value if key.value == "class_path"]
    return bool(given and names) and names[0] != str(given).rpartition(".")[2]


def _rewritten(keys: Sequence[str], value: str) -> object:
    """A text for the parser; the collection at a path for ``source`` and what is in ``sources`` or ``targets``."""
    collection = keys[-1] == "source" or (len(keys) > 1 and keys[-2] in ("sources", "targets"))
    return (_description(value) if collection else None) or _NAMES.get(value, _expanded(value))


def _description(value: str) -> dict[str, object] | None:
    """Describes the collection for a path; ``None`` if it is not a path. Class names take precedence."""
    if isinstance(getattr(metatransfer, value, None), type):
        return None
    path = Path(value).expanduser()
    if not (path.exists() or "/" in value or os.sep in value or path.suffix.lower() in _ENDINGS):
        return None
    from metatransfer.data.collections import describe_path

    described: dict[str, object] = describe_path(str(path))
    return described


def _expanded(value: str) -> str:
    return os.path.expanduser(value) if re.match(r"~(/|\\|$)", value) else value
