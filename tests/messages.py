"""Whole messages, in one file.

Tests ask for what a message must contain: the value, the remedy. How it is worded stands in ``golden_messages.txt``,
so that English is improved there and seen in one diff: after a change, ``pytest --update-messages FILES`` writes the
messages of these files anew.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_messages.txt")
ROOT = Path(__file__).resolve().parents[1]
compared = True
updating = False
_kept = defaultdict(list)  # of this session: test -> messages in order


def keep(message):
    """Compares a message with the one that the file has for the running test; returns it as it is."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0].removeprefix("tests/")
    _kept[test].append(_plain(message))
    if compared and not updating:
        expected = read().get(test, [])[len(_kept[test]) - 1 :][:1]
        assert expected == _kept[test][-1:], "reworded? then run pytest --update-messages on this file"
    return message


def _plain(message):
    """One line, without folders of this machine or this run, and without lists that other tests' classes are in."""
    message = message.replace(str(ROOT), "<root>")
    message = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s'\"]*/(?=[^\s'\"/])", "<tmp>/", message)
    message = re.sub(r" Known: [\w, ]+\.(?= For a class of your own)", "", message)
    message = re.sub(r"(?<=abstract class: give one of )[\w, ]+", "<classes>", message)
    return message.replace("\n", "\\n")


def read():
    """The messages of each test, from a file of test names with their messages indented below."""
    found, test = {}, None
    for line in GOLDEN.read_text().splitlines() if GOLDEN.exists() else []:
        if line.startswith("    "):
            found[test].append(line[4:])
        elif line and not line.startswith("#"):
            test = line
            found[test] = []
    return found


def write():
    """Where messages are updated: those of the files that ran, in the place of what these files had."""
    if not (updating and _kept):
        return
    files = {test.partition("::")[0] for test in _kept}
    found = {test: kept for test, kept in read().items() if test.partition("::")[0] not in files} | _kept
    lines = ["# Whole messages by test; written by pytest --update-messages"]
    for test in sorted(found):
        lines += [test, *(f"    {message}" for message in found[test])]
    GOLDEN.write_text("\n".join(lines) + "\n")
