"""Validators of numbers, words and weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from metatransfer.errors import UserError


def check_positive(**values: float | None) -> None:
    """Raises an error unless every number is positive and finite; ``None`` passes.

    Args:
        values: the numbers by argument name.

    Raises:
        UserError: the first that is 0, negative or not finite.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be a number above 0, but is {value}.")


def check_not_negative(**values: float | None) -> None:
    """Raises an error if a number is negative or not finite; ``None`` passes.

    Args:
        values: the numbers by argument name.

    Raises:
        UserError: the first such number.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"{name} must be 0 or more, but is {value}.")


def check_seed(**values: float) -> None:
    """Raises an error unless every number can seed a random generator.

    Args:
        values: the seeds by argument name.

    Raises:
        UserError: the first that is not a whole number from 0 to 2**32 - 1.
    """
    for name, value in values.items():
        if not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"{name} must be a whole number from 0 to {2**32 - 1}, but is {value}.")


def check_fraction(**values: float) -> None:
    """Raises an error unless every number lies in [0, 1).

    Args:
        values: the numbers by argument name.

    Raises:
        UserError: the first that does not.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} must be a fraction from 0 to below 1, but is {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises an error unless a word is one of the allowed ones.

    Args:
        name: the argument.
        value: the word.
        choices: the allowed words.

    Raises:
        UserError: names the nearest allowed word.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{name} must be one of {', '.join(choices)}, but is '{value}'{did_you_mean(str(value), choices)}"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the known word nearest to ``word``.

    Args:
        word: what was typed.
        known: the words that exist.

    Returns:
        ``". Did you mean X?"``, or ``"."`` if no word is near.
    """
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f". Did you mean {lower[near[0]]}?" if near else "."


def check_monitor(name: str, monitor: str, logged: Iterable[str]) -> None:
    """Raises an error if a monitored metric is not logged.

    Args:
        name: what monitors it.
        monitor: the metric.
        logged: all logged metrics.

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
    """Raises an error if weights belong to another network, before any of them is copied.

    Args:
        own: the expected weights.
        loaded: the weights to be loaded.
        what: the class that is to take them.

    Raises:
        UserError: names the first keys that are missing, unknown or of another shape.
    """
    missing = [key for key in own if key not in loaded]
    unknown = [key for key in loaded if key not in own]
    shapes = [
        f"{key} {tuple(loaded[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in loaded and loaded[key].shape != own[key].shape
    ]
    problems = [
        f"{len(found)} {title} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for title, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise UserError(
            f"the checkpoint's weights do not fit this {what}: {'; '.join(problems)}. Give the model the arguments "
            "that it was trained with (they stand in the config.yaml of its run)."
        )
