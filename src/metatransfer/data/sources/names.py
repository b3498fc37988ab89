"""Names of splits and the order of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metatransfer.errors import UserError

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What each split may be called in a user's data."""


def split_of(word: str) -> str | None:
    """The split that a word names: ``"Validation"``, ``"dev_set"`` are ``"val"``; ``None`` for any other word."""
    plain = re.sub(r"^seg[_-]|[_ -]?(set|images)$", "", word.strip().lower())
    return next((split for split, words in SPLIT_NAMES.items() if plain in words), None)


def natural_order(names: Sequence[str] | NDArray[np.str_]) -> list[str]:
    """The different names, sorted: whole numbers by their value, anything else as text."""
    unique = sorted(set(map(str, names)))  # not by NumPy, which drops NUL from the end of a text
    if all(name.removeprefix("-").isdecimal() and name.isascii() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return unique


def numbered(labels: Sequence[str] | NDArray[np.str_]) -> tuple[NDArray[np.int64], list[str]]:
    """Labels as numbers: ``(N,)`` places in the class names, and the class names in natural order."""
    names = natural_order(labels)
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[str(label)] for label in labels], np.int64), names


def check_disjoint(classes: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises an error if two splits share classes: few-shot learning is tested on new ones."""
    for index, split in enumerate(SPLITS):
        for other in SPLITS[index + 1 :]:
            there = set(classes.get(other, ()))
            shared = [name for name in classes.get(split, ()) if name in there]
            if shared:
                more = ", ..." if len(shared) > 3 else ""
                raise UserError(
                    f"{where}: {split} and {other} share {len(shared)} classes ({', '.join(shared[:3])}{more}), but "
                    "few-shot splits must have different classes: move them, or leave the splits out to have the "
                    "classes divided at random."
                )


def group_of_classes(labels: NDArray[np.str_], groups: NDArray[np.str_], where: str) -> dict[str, str]:
    """The group of each class, from the class ``(N,)`` and the group ``(N,)`` of each sample."""
    pairs = np.unique(np.stack([labels.astype(np.str_), groups.astype(np.str_)]), axis=1).T.tolist()
    found: dict[str, str] = {}
    for name, group in pairs:
        if name in found:
            raise UserError(
                f"{where}: class '{name}' is in the groups '{found[name]}' and '{group}', but all samples of a class "
                "must be in one: fix the groups, or leave them out."
            )
        found[name] = group
    return found
