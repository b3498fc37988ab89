"""Rewrites arguments and configurations for the parser: paths to data, ``~``, short names and null."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.pytorch.cli import ReduceLROnPlateau

import metatransfer
from metatransfer.cli.config_files import check_limits

_ENDINGS = {".csv", ".tsv", ".parquet", ".npz", ".npy", ".mat", ".safetensors", ".zip"}
# not torch's class of the same name, which has no monitor
_NAMES = {"ReduceLROnPlateau": f"{ReduceLROnPlateau.__module__}.{ReduceLROnPlateau.__qualname__}"}
_NULLS = ("null", "Null", "NULL", "~")


def rewrite_arguments(arguments: Sequence[str]) -> list[str]:
    """Rewrites the arguments of a command."""
    found: list[str] = []
    name = ""
    for argument in arguments:
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


def rewrite_config(text: str, name: str = "") -> str:
    """Rewrites a YAML text."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or not _rewrite_mapping(root, name):
        return text
    return yaml.serialize(root, Dumper=yaml.SafeDumper)


def _rewrite_value(name: str, value: str) -> str:
    keys = name.removeprefix("--").split(".")
    if keys == ["config"]:
        return _expanded(value)  # its content is rewritten when it is read
    if value.startswith("{"):
        try:
            return rewrite_config(value, keys[-1])
        except yaml.YAMLError:
            return value  # the parser reports the error
    described = _description(value) if _holds_a_collection(keys) else None
    return json.dumps(described) if described else _NAMES.get(value, _expanded(value))


def _rewrite_mapping(node: yaml.MappingNode, name: str) -> bool:
    """Rewrites a mapping in place."""
    changed = False
    for place, (key, value) in enumerate(node.value):
        keys = [name, str(key.value)]
        if isinstance(value, yaml.MappingNode):
            changed |= _rewrite_mapping(value, name if key.value == "init_args" else keys[-1])
        elif isinstance(value, yaml.SequenceNode):
            for item in value.value:
                changed |= isinstance(item, yaml.MappingNode) and _rewrite_mapping(item, keys[-1])
        elif value.tag == "tag:yaml.org,2002:str":
            described = _description(value.value) if _holds_a_collection(keys) else None
            text = json.dumps(described) if described else json.dumps(_NAMES.get(value.value, _expanded(value.value)))
            if described or json.loads(text) != value.value:
                node.value[place] = (key, yaml.compose(text, Loader=yaml.SafeLoader))
                changed = True
    return changed


def _holds_a_collection(keys: Sequence[str]) -> bool:
    """Whether an argument is a collection: ``source``, or an entry of ``sources`` or ``targets``."""
    return keys[-1] == "source" or (len(keys) > 1 and keys[-2] in ("sources", "targets"))


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
