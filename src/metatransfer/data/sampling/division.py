"""Random division of undivided data into splits: by class for episodes, otherwise by sample within each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sampling.sampler import Stream
from metatransfer.data.sources import Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys


class RandomDivision:
    """Divides classes at random among three splits, each of which gets at least the classes of one episode."""

    def __init__(self, seed: int, val_fraction: float, test_fraction: float) -> None:
        self.seed = seed
        self.fractions = {"val": val_fraction, "test": test_fraction}

    def __str__(self) -> str:
        return f"classes at random, seed {self.seed}, {self.fractions['val']} val, {self.fractions['test']} test"

    def __call__(self, names: Sequence[str], num_ways: int, eval_num_ways: int, where: str) -> dict[str, list[str]]:
        """The classes of each split, in the order of ``names``, on which the division depends."""
        needs = {"train": num_ways, "val": eval_num_ways, "test": eval_num_ways}
        if len(names) < sum(needs.values()):
            raise UserError(
                f"{where} has {len(names)} classes, but three splits need {' + '.join(map(str, needs.values()))} = "
                f"{sum(needs.values())} for {num_ways}-way training and {eval_num_ways}-way evaluation: add classes, "
                "or lower task.num_ways or eval_task.num_ways."
            )
        sizes = {one: max(needs[one], round(self.fractions[one] * len(names))) for one in ("val", "test")}
        while len(names) - sum(sizes.values()) < needs["train"]:
            sizes[max(sizes, key=lambda one: sizes[one] - needs[one])] -= 1
        order = random_permutations(stream_keys(np.array([self.seed])), len(names))[0]
        test, val = sizes["test"], sizes["test"] + sizes["val"]
        parts = {"test": order[:test], "val": order[test:val], "train": order[val:]}
        return {split: [names[index] for index in sorted(part)] for split, part in parts.items()}


def divided_at_random(members: NDArray[np.int64], fractions: Mapping[str, float]) -> dict[str, NDArray[np.int64]]:
    """Gives each part its fraction of shuffled samples, at least one, and training the rest, at least one."""
    found, start = {}, 0
    for place, (part, fraction) in enumerate(fractions.items()):
        left = len(members) - start - (len(fractions) - place)  # one each for the remaining parts and for training
        count = min(max(1, round(fraction * len(members))), left)
        found[part] = members[start : start + count]
        start += count
    return found | {"train": members[start:]}


def shuffled(seed: int, count: int) -> NDArray[np.int64]:
    """``(count,)`` samples in the random order in which they are divided."""
    order: NDArray[np.int64] = random_permutations(stream_keys(seed, Stream.DIVISION, np.array([0])), count)[0]
    return order


def stratified(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Divides every class at random, as :func:`divided_at_random` does."""
    order = shuffled(seed, len(source))
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("train", *fractions)}
    for label, name in enumerate(source.class_names):
        members = order[source.labels[order] == label]
        if len(members) <= len(fractions):
            raise UserError(
                f"{source.name}: class '{name}' has {len(members)} sample{'s' * (len(members) != 1)}, but needs one "
                f"for each of {', '.join(found)}: add some, or leave the class out."
            )
        for part, rows in divided_at_random(members, fractions).items():
            found[part].append(rows)
    return {part: np.sort(np.concatenate(rows)) for part, rows in found.items()}
