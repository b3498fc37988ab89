"""Validators of files and folders; ``what`` names them in the error message. ``~`` is the user's home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from metatransfer.checks.values import did_you_mean
from metatransfer.errors import UserError

__all__ = ["check_file", "check_folder", "check_writable"]


def check_file(path: str | Path, what: str, remedy: str = "") -> Path:
    """The path of a file that must exist and be readable.

    Args:
        path: the file.
        what: name of the file in the error message.
        remedy: what to do if the file is missing and none has a similar name.

    Returns:
        The path.

    Raises:
        UserError: the file does not exist (suggests the most similar name), is a folder, or cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{what} '{path}' does not exist{_similar(path, remedy)}")
    if not path.is_file():
        raise UserError(f"{what} '{path}' is a folder, but must be a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} '{path}' cannot be read: check its permissions.")
    return path


def check_folder(path: str | Path, what: str) -> Path:
    """The path of a folder that must exist.

    Raises:
        UserError: the folder does not exist (suggests the most similar name), or is a file.
    """
    path = Path(path).expanduser()
    if path.is_file():
        raise UserError(f"{what} '{path}' is a file, but must be a folder.")
    if not path.is_dir():
        raise UserError(f"{what} '{path}' does not exist{_similar(path)}")
    return path


def _similar(path: Path, remedy: str = "") -> str:
    near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else [])
    return f": {remedy or 'check the path'}." if near == "." else near


def check_writable(path: str | Path, what: str) -> Path:
    """The path of a folder that can be written to, or created.

    The folder is not created. Permissions alone are not reliable, so a file is written for a moment.

    Raises:
        UserError: the folder, or the first of its parents that exists, is a file or not writable.
    """
    path = Path(path).expanduser()
    if "\0" in str(path):
        raise UserError(f"{what} '{path}' cannot be written (it contains NUL): choose another folder.")
    try:
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{what} '{path}' cannot be created: '{existing}' is a file, not a folder.")
        # in a temporary folder, because several runs may check the same folder at once
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing) as trial:
            folder = Path(trial, path.absolute().relative_to(existing))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_bytes(b"0")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{what} '{path}' cannot be written ({reason}): choose another folder.") from error
    return path
