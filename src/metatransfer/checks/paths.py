"""Validators of files and folders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from metatransfer.checks.values import did_you_mean
from metatransfer.errors import UserError


def check_file(path: str | Path, what: str, remedy: str = "") -> Path:
    """The path of a file that must exist and be readable.

    Args:
        path: the file.
        what: what it is, for the message.
        remedy: what to do if it is missing and no file has a similar name.

    Returns:
        The path.

    Raises:
        UserError: it does not exist (names the nearest file), is a folder, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        advice = did_you_mean(path.name, siblings)
        raise UserError(f"{what} '{path}' does not exist{f': {remedy}.' if remedy and advice == '.' else advice}")
    if not path.is_file():
        raise UserError(f"{what} '{path}' is a folder, but must be a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} '{path}' cannot be read: check its permissions.")
    return path


def check_folder(path: str | Path, what: str) -> Path:
    """The path of a folder that must exist.

    Args:
        path: the folder.
        what: what it is, for the message.

    Returns:
        The path.

    Raises:
        UserError: it does not exist (names the nearest folder) or is a file.
    """
    path = Path(path)
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        problem = "is a file, but must be a folder." if path.exists() else "does not exist"
        raise UserError(f"{what} '{path}' {problem}{'' if path.exists() else did_you_mean(path.name, siblings)}")
    return path


def check_writable(path: str | Path, what: str) -> Path:
    """The path of a folder that can be written to, or created; tried out, since permissions alone do not tell.

    Args:
        path: the folder; it need not exist, and is not created.
        what: what it is for, for the message.

    Returns:
        The path.

    Raises:
        UserError: it, or the first of its parents that exists, is not a folder or not writable.
    """
    path = Path(path)
    try:
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{what} '{path}' cannot be made: '{existing}' is a file, not a folder.")
        # under a name of its own: several runs may try the same folder at once
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing) as trial:
            folder = Path(trial, path.absolute().relative_to(existing))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_bytes(b"0")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{what} '{path}' cannot be written ({reason}): choose another folder.") from error
    return path
