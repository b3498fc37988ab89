"""Configuration files, looked at before the parser makes something else of them."""

from __future__ import annotations

from pathlib import Path

import yaml

from metatransfer.errors import UserError

_SECTIONS = ("trainer", "checkpoint", "model", "data")
_OF_CLASS = ("class_path", "init_args", "dict_kwargs", "<<")
_COMMANDS = ("fit", "validate", "test", "predict")


def check_config(path: str | Path) -> None:
    """Refuses a configuration file that is no YAML of sections, before the parser makes something else of it.

    Args:
        path: the file, which exists.

    Raises:
        UserError: not UTF-8, not YAML, not made of sections, or a name that stands twice; with the line.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"config file '{path}', line {line}: this is no UTF-8 text; give a YAML file.") from error
    check_config_text(text, f"config file '{path}'")


def check_config_text(text: str, name: str) -> None:
    """Refuses a configuration that is no YAML of sections.

    Args:
        text: the YAML.
        name: how to call it in the sentence.

    Raises:
        UserError: as :func:`check_config`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{name}, line {line}: this is no valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is no text: give a YAML file.") from error
    if root is None:
        raise UserError(f"{name} is empty: it must hold sections such as trainer, model and data.")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name} must hold sections such as trainer, model and data, but holds {_described(root)}.")
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
            raise UserError(
                f"{name}, line {value.start_mark.line + 1}: section '{key.value}' must hold {kind}, but "
                f"holds {_described(value)}."
            )


def _check_names(node: yaml.Node, name: str) -> None:
    """Refuses a name that stands twice, and arguments of a class that do not stand under ``init_args``.

    YAML keeps the last of two values without a word, and the parser does not take the class for one.

    Raises:
        UserError: with the line.
    """
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_names(value, name)
    if not isinstance(node, yaml.MappingNode):
        return
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for index, (key, value) in enumerate(node.value):
        where = f"{name}, line {key.start_mark.line + 1}"
        if key.value in names[:index] and key.value != "<<":
            raise UserError(f"{where}: '{key.value}' stands a second time in its section: keep one of the two.")
        if "class_path" in names and key.value not in _OF_CLASS:
            raise UserError(
                f"{where}: '{key.value}' stands beside class_path, but the arguments of a class stand under init_args."
            )
        _check_names(value, name)


def _described(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"only '{str(node.value)[:40]}'" if node.value else "nothing"
