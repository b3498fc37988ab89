"""Runs the commands that are not Lightning's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module

import metatransfer
from metatransfer.cli import commands
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError
from metatransfer.errors import UserError


def run_command(name: str, typed: Sequence[str]) -> None:
    """Parses the arguments of a command and runs it.

    Raises:
        UserError: an argument is invalid.
    """
    module = import_module(f"{commands.__name__}.{name}")
    parser = ArgumentParser(
        prog=f"lightning {name}", description=module.__doc__, version=metatransfer.__version__, allow_abbrev=False
    )
    module.arguments(parser)
    try:
        settings = parser.parse_args(list(typed))
    except ParserError as error:
        missing = re.search(r"arguments are required: (.*)", str(error))
        if missing:
            names = " and ".join(f"--{word.strip().lstrip('-')}" for word in missing[1].split(","))
            raise UserError(f"lightning {name} needs {names}: give a value (see lightning {name} --help).") from error
        raise UserError(explain(str(error), re.findall(r"--[\w.]+", parser.format_help()))) from error
    module.run(settings)
