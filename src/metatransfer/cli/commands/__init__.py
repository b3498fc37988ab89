"""Commands beside those of Lightning's Trainer: every module of this folder is one, and its name is the command's.

A command has two functions, and is imported only when it is given. The first line of its docstring is its help::

    def arguments(parser: ArgumentParser) -> None: ...  # adds its arguments
    def run(settings: Namespace) -> None: ...  # gets their values
"""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path


def command_names() -> list[str]:
    """The names of the commands."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def overview() -> str:
    """A sentence about all commands, for the help."""
    found = ", ".join(f"{name} ({_summary(name)})" for name in command_names())
    return f"More commands, each with its own --help: {found}." if found else ""


def _summary(name: str) -> str:
    """The first line of a command's docstring, read without importing the command."""
    path = next(path for folder in __path__ if (path := Path(folder, f"{name}.py")).exists())
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")
