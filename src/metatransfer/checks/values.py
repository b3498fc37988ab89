"""Validators of numbers, words, weights, files and folders; ``what`` names a file in the error message."""

import difflib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metatransfer.errors import UserError

__all__ = [
    "check_choice", "check_count", "check_file", "check_folder", "check_fraction", "check_monitor",
    "check_not_negative", "check_positive", "check_seed", "check_state_dict", "check_writable", "did_you_mean",
]  # fmt: skip


def check_positive(**values: float | None) -> None:
    """Raises an error unless every number, given by argument name, is positive and finite; ``None`` passes."""
    _check(values, "a number above 0", lambda value: 0 < value < float("inf"))


def check_count(least: int = 1, most: int = 10**6, /, **values: int | None) -> None:
    """Raises an error unless every number, given by argument name, is an integer in this range; ``None`` passes.

    Larger numbers are typing errors, and would run out of memory before any other check.
    """
    rule = f"a whole number from {least} to {most}"
    _check(values, rule, lambda value: isinstance(value, Integral) and least <= int(value) <= most)


def check_not_negative(**values: float | None) -> None:
    """Raises an error if a number, given by argument name, is negative or not finite; ``None`` passes."""
    _check(values, "0 or more", lambda value: 0 <= value < float("inf"))


def check_seed(**values: int | None) -> None:
    """Raises an error unless every number, given by argument name, is an integer below 2**32; ``None`` passes."""
    check_count(0, 2**32 - 1, **values)


def check_fraction(**values: float | None) -> None:
    """Raises an error unless every number, given by argument name, is in [0, 1); ``None`` passes."""
    _check(values, "a fraction from 0 to below 1", lambda value: 0 <= value < 1)


def _check(values: Mapping[str, Any], rule: str, holds: Callable[[Any], bool]) -> None:
    for name, value in values.items():
        if value is not None and not (isinstance(value, Real) and holds(value)):
            raise UserError(f"{name} must be {rule}, but is {value!r:.40}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises an error unless an argument is one of the allowed words; suggests the most similar one."""
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), choices)
        raise UserError(f"{name} must be one of {', '.join(choices)}, but is '{value}'{hint}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question whether the known word most similar to ``word`` was meant, or a full stop if none is similar."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f". Did you mean {lower[near[0]]}?" if near else "."


def check_monitor(name: str, monitor: str, logged: Iterable[str]) -> None:
    """Raises an error, with the logged metrics, if the argument ``name`` monitors one that is not logged."""
    known = sorted(logged)
    if monitor not in known:
        hint = did_you_mean(monitor, known)
        raise UserError(f"{name} '{monitor}' is not logged by this run{hint} Known: {', '.join(known) or 'none'}.")


def check_state_dict(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], what: str) -> None:
    """Raises an error if loaded weights do not fit a class, with the first keys that are missing, unknown or wrong."""
    shapes = [
        f"{key} {_shape(loaded[key])} instead of {tuple(own[key].shape)}"
        for key in own
        if key in loaded and isinstance(own[key], Tensor) and _shape(loaded[key]) != str(tuple(own[key].shape))
    ]
    found = {
        "missing": [key for key in own if key not in loaded],
        "unknown": [key for key in loaded if key not in own],
        "of another shape": shapes,
    }
    problems = [
        f"{len(keys)} {title} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
        for title, keys in found.items()
        if keys
    ]
    if problems:
        raise UserError(
            f"the checkpoint's weights do not fit this {what}: {'; '.join(problems)}. Build the model with the "
            "arguments that it was trained with (see the config.yaml of its run)."
        )


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}"
    if value.is_meta or value.layout != torch.strided:
        return "holds no values" if value.is_meta else "is sparse"
    return str(tuple(value.shape))


def check_file(path: str | Path, what: str, remedy: str = "") -> Path:
    """The path of a file that must exist and be readable; ``remedy`` is advice if none has a similar name."""
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{what} '{path}' does not exist{_similar(path, remedy)}")
    if not path.is_file():
        raise UserError(f"{what} '{path}' is a folder, but must be a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} '{path}' cannot be read: check its permissions.")
    return path


def check_folder(path: str | Path, what: str) -> Path:
    """The path of a folder that must exist; if it does not, the error suggests the most similar name."""
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
    """The path of a folder that can be written to, or created; the folder is not created."""
    path = Path(path).expanduser()
    if "\0" in str(path):
        raise UserError(f"{what} '{path}' cannot be written (it contains NUL): choose another folder.")
    try:
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{what} '{path}' cannot be created: '{existing}' is a file, not a folder.")
        # a file is written for a moment, as permissions alone are not reliable; in a temporary folder, because several
        # runs may check the same folder at once
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing) as trial:
            folder = Path(trial, path.absolute().relative_to(existing))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_bytes(b"0")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{what} '{path}' cannot be written ({reason}): choose another folder.") from error
    return path
