"""The split of each sample, from a column that names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sources import SPLITS, split_of
from metatransfer.errors import UserError


def rows_of_splits(
    words: Sequence[str], column: str, where: str, at: Callable[[int], str]
) -> dict[str, NDArray[np.int64]]:
    """The indices of the samples of each split."""
    found = {word: split_of(word) for word in dict.fromkeys(words)}
    for word, split in found.items():
        if split is None:
            known = ", ".join(SPLITS)
            raise UserError(f"{at(words.index(word))}: '{column}' holds '{word[:30]}', but must hold one of {known}.")
    if "train" not in found.values():
        there = ", ".join(split for split in SPLITS if split in found.values())
        raise UserError(f"{where} has no rows for train in '{column}', only for {there}: add some.")
    splits = np.array([found[word] for word in words], dtype=np.str_)
    return {split: np.flatnonzero(splits == split) for split in SPLITS if split in found.values()}
