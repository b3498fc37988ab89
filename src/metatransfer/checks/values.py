"""Validators of numbers, words and weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from metatransfer.errors import UserError

__all__ = [
    "check_choice",
    "check_fraction",
    "check_monitor",
    "check_not_negative",
    "check_positive",
    "check_seed",
    "check_state_dict",
    "did_you_mean",
]


def check_positive(**values: float | None) -> None:
    """Raises an error unless every number, given by argument name, is positive and finite; ``None`` passes.

    Raises:
        UserError: names the first number that is not.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be a number above 0, but is {value}.")


def check_not_negative(**values: float | None) -> None:
    """Raises an error if a number, given by argument name, is negative or not finite; ``None`` passes.

    Raises:
        UserError: names the first such number.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"{name} must be 0 or more, but is {value}.")


def check_seed(**values: float) -> None:
    """Raises an error unless every number, given by argument name, is an integer from 0 to 2**32 - 1.

    Raises:
        UserError: names the first number that is not.
    """
    for name, value in values.items():
        if not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"{name} must be a whole number from 0 to {2**32 - 1}, but is {value}.")


def check_fraction(**values: float) -> None:
    """Raises an error unless every number, given by argument name, is in [0, 1).

    Raises:
        UserError: names the first number that is not.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} must be a fraction from 0 to below 1, but is {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises an error unless an argument is one of the allowed words.

    Raises:
        UserError: lists the allowed words and suggests the most similar one.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{name} must be one of {', '.join(choices)}, but is '{value}'{did_you_mean(str(value), choices)}"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question whether the known word most similar to ``word`` was meant, or a full stop if none is similar."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f". Did you mean {lower[near[0]]}?" if near else "."


def check_monitor(name: str, monitor: str, logged: Iterable[str]) -> None:
    """Raises an error if the argument ``name`` monitors a metric that is not logged.

    Raises:
        UserError: lists the logged metrics.
    """
    known = sorted(logged)
    if monitor not in known:
        raise UserError(
            f"{name} '{monitor}' is not logged by this run{did_you_mean(monitor, known)} Known: "
            f"{', '.join(known) or 'none'}."
        )


def check_state_dict(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], what: str) -> None:
    """Raises an error if loaded weights do not fit a class, before any of them is copied.

    Args:
        own: the expected weights.
        loaded: the loaded weights.
        what: name of the class.

    Raises:
        UserError: names the first keys that are missing, unknown or of another shape.
    """
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
        f"{len(keys)} {title} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
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
