"""Runs the commands that are not Lightning's."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module

import metatransfer
from metatransfer.cli import commands
from metatransfer.cli.messages import explain
from metatransfer.cli.parser import ArgumentParser, ParserError
from metatransfer.errors import UserError


def run_command(name: str, typed: Sequence[str]) -> None:
    """Parses the arguments of a command and runs it.

    A module may list arguments of type ``dict`` in ``NESTED``: of ``--data.task.num_ways 5`` they get the key
    ``task/num_ways``, since the parser would keep only the last of several values inside ``task``. Of those that are
    given by a single value, too, ``MAIN`` has its name inside: ``--executor ray`` is ``--executor.name ray``.

    Raises:
        UserError: an argument is invalid.
    """
    module = import_module(f"{commands.__name__}.{name}")
    parser = ArgumentParser(
        prog=f"lightning {name}", description=module.__doc__, version=metatransfer.__version__, allow_abbrev=False
    )
    module.arguments(parser)
    try:
        settings = parser.parse_args(
            [_flat(part, getattr(module, "NESTED", ()), getattr(module, "MAIN", {})) for part in typed]
        )
    except ParserError as error:
        missing = re.search(r"arguments are required: (.*)", str(error))
        if missing:
            names = " and ".join(f"--{word.strip().lstrip('-')}" for word in missing[1].split(","))
            raise UserError(f"lightning {name} needs {names}: give a value (see lightning {name} --help).") from error
        raise UserError(explain(str(error), re.findall(r"--[\w.]+", parser.format_help()))) from error
    module.run(parser.instantiate(settings))


def _flat(part: str, nested: Sequence[str], main: Mapping[str, str]) -> str:
    option, equals, value = part.partition("=")
    if option.startswith("--") and option[2:] in main:
        return f"{option}.{main[option[2:]]}{equals}{value}"
    found = re.match(r"--(\w+)\.([^=]+)(.*)", part, re.DOTALL)
    return f"--{found[1]}.{found[2].replace('.', '/')}{found[3]}" if found and found[1] in nested else part
