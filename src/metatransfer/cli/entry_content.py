"""What an entry depends on beside its configuration: files that it names, and code that is not of this package."""

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pydoc import ErrorDuringImport, locate
from typing import Any

from metatransfer.cli.entries import Candidate

_KNOWN = ("metatransfer", "torch", "lightning")  # their code has versions


def own_content(candidate: Candidate) -> dict[str, str]:
    """Hashes of the files that an entry names and of the code of its own classes, by name.

    Data have their own fingerprint: of the section ``data``, only classes count.
    """
    kind = candidate.model
    config = {name: section for name, section in candidate.config.items() if name != "data"}
    texts = {part for text in _texts([config, candidate.arguments]) for part in (text, *_inside(text))}
    named = {f"{kind.__module__}.{kind.__qualname__}", *texts}
    of_data = {text for text in _texts(candidate.config.get("data")) if not os.path.exists(text)}
    found = {text: _hash_of(text) for text in sorted(named | of_data)}
    return {text: digest for text, digest in found.items() if digest}


def _texts(described: Any) -> Iterator[str]:  # noqa: ANN401
    """All texts of a configuration; of an argument ``--name=value``, the value."""
    if isinstance(described, str):
        yield re.sub(r"^--[^=]*=", "", described)
    elif isinstance(described, Mapping):
        for value in described.values():
            yield from _texts(value)
    elif isinstance(described, list | tuple):
        for value in described:
            yield from _texts(value)


def _inside(text: str) -> list[str]:
    """The files of a folder, such as that of an encoder."""
    folder = os.path.expanduser(text)
    found = sorted(os.scandir(folder), key=lambda one: one.name) if text and os.path.isdir(folder) else []
    return [one.path for one in found if one.is_file()]


def _hash_of(text: str) -> str:
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        path = _source_file(text)
    if not path:
        return ""
    status = os.stat(path)
    return _hash_of_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _hash_of_file(path: str, changed: int, size: int) -> str:
    """The hash of a file, read again only after a change."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _source_file(text: str) -> str:
    """The file of a class given by its import path; empty if it is none, or of a known package.

    Only capitalised names are looked up, because that imports their module: ``train.loss`` is no class, but may be a
    script.
    """
    if not re.fullmatch(r"([A-Za-z_]\w*\.)+_?[A-Z]\w*", text) or text.partition(".")[0] in _KNOWN:
        return ""
    try:
        found: Any = locate(text)
        return inspect.getsourcefile(found) or ""
    except (ErrorDuringImport, TypeError):  # another text with a dot, or not written in Python
        return ""
