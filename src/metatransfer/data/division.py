"""Which classes belong to which split and group: divided at random, or as the data says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_positive
from metatransfer.data.samplers import SPLITS
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""What each split may be called in a user's data."""


class RandomDivision:
    """Divides classes at random among three splits, each getting at least the classes of one episode.

    Args:
        seed: which division.
        val_fraction: part of the classes for validation.
        test_fraction: part of the classes for the test.

    Raises:
        UserError: fractions that leave no training classes.
    """

    def __init__(self, seed: int, val_fraction: float, test_fraction: float) -> None:
        check_positive(val_fraction=val_fraction, test_fraction=test_fraction)
        if val_fraction + test_fraction >= 1:
            raise UserError(
                f"val_fraction + test_fraction must be below 1 to leave training classes, but are {val_fraction} + "
                f"{test_fraction}."
            )
        self.seed = seed
        self.fractions = {"val": val_fraction, "test": test_fraction}

    def __str__(self) -> str:
        return f"classes at random, seed {self.seed}, {self.fractions['val']} val, {self.fractions['test']} test"

    def __call__(
        self, names: Sequence[str], num_ways: int, eval_num_ways: int, where: str, what: str = "classes"
    ) -> dict[str, list[str]]:
        """The classes of each split.

        Args:
            names: the classes; their order is part of what is drawn.
            num_ways: classes of a training episode.
            eval_num_ways: classes of an episode in validation and test.
            where: where the classes come from, to be named.
            what: what they are.

        Returns:
            For each split its classes, in the order of ``names``.

        Raises:
            UserError: too few for an episode of each split.
        """
        needs = {"train": num_ways, "val": eval_num_ways, "test": eval_num_ways}
        if len(names) < sum(needs.values()):
            raise UserError(
                f"{where} has {len(names)} {what}, but three splits need {' + '.join(map(str, needs.values()))} = "
                f"{sum(needs.values())} for {num_ways}-way training and {eval_num_ways}-way evaluation: add classes, "
                "or lower num_ways or eval_num_ways."
            )
        sizes = {one: max(needs[one], round(self.fractions[one] * len(names))) for one in ("val", "test")}
        while len(names) - sum(sizes.values()) < needs["train"]:
            sizes[max(sizes, key=lambda one: sizes[one] - needs[one])] -= 1
        # streams of 64 bits, whose order is the same on every machine and in every version
        order = random_permutations(stream_keys(np.array([self.seed])), len(names))[0]
        test, val = sizes["test"], sizes["test"] + sizes["val"]
        parts = {"test": order[:test], "val": order[test:val], "train": order[val:]}
        return {split: [names[index] for index in sorted(part)] for split, part in parts.items()}


def split_of(word: str) -> str | None:
    """The split that a word of the user's data names.

    Args:
        word: e.g. ``"Validation"``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; ``None`` for any other word.
    """
    return next((split for split, words in SPLIT_NAMES.items() if word.strip().lower() in words), None)


def check_disjoint(classes: Mapping[str, Sequence[str]], where: str) -> None:
    """Refuses splits that share classes: few-shot learning is tested on new ones.

    Args:
        classes: those of each split.
        where: where they come from, to be named.

    Raises:
        UserError: with the first few classes that two splits share.
    """
    for index, split in enumerate(SPLITS):
        for other in SPLITS[index + 1 :]:
            shared = [name for name in classes.get(split, ()) if name in set(classes.get(other, ()))]
            if shared:
                more = ", ..." if len(shared) > 3 else ""
                raise UserError(
                    f"{where}: {split} and {other} share {len(shared)} classes ({', '.join(shared[:3])}{more}), but "
                    "few-shot splits must have different classes: move them, or leave the splits out to have the "
                    "classes divided at random."
                )


def natural_order(names: Sequence[str] | NDArray[np.str_]) -> list[str]:
    """Different names, sorted: whole numbers by their value, anything else as text.

    Args:
        names: with repetitions.

    Returns:
        Each name once.
    """
    unique = [str(name) for name in np.unique(np.asarray(names, dtype=np.str_))]
    if all(name.removeprefix("-").isdecimal() and name.isascii() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return unique


def group_of_classes(labels: NDArray[np.str_], groups: NDArray[np.str_], where: str) -> dict[str, str]:
    """The group of each class.

    Args:
        labels: ``(N,)`` class of each sample.
        groups: ``(N,)`` group of each sample.
        where: where they come from, to be named.

    Returns:
        Groups by class.

    Raises:
        UserError: a class that stands in two groups.
    """
    pairs = np.unique(np.stack([labels.astype(np.str_), groups.astype(np.str_)]), axis=1).T.tolist()
    found: dict[str, str] = {}
    for name, group in pairs:
        if name in found:
            raise UserError(
                f"{where}: class '{name}' is in the groups '{found[name]}' and '{group}', but all samples of a class "
                "must be in one: mend the groups, or leave them out."
            )
        found[name] = group
    return found


def classes_of_splits(labels: NDArray[np.str_], splits: NDArray[np.str_], where: str) -> dict[str, list[str]]:
    """The classes of each split, where every sample says its own.

    Args:
        labels: ``(N,)`` class of each sample.
        splits: ``(N,)`` ``"train"``, ``"val"`` or ``"test"``.
        where: where they come from, to be named.

    Returns:
        For each split that occurs its classes, sorted.
    """
    found = {split: natural_order(labels[splits == split]) for split in SPLITS if (splits == split).any()}
    check_disjoint(found, where)
    return found
