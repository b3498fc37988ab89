"""What the arrays of samples and labels are called in a file."""

from __future__ import annotations

from collections.abc import Mapping

from metatransfer.checks import did_you_mean
from metatransfer.data.readers.array_files import ArrayFile
from metatransfer.data.sources import SPLIT_NAMES
from metatransfer.errors import UserError

SAMPLES = ("x", "X", "data", "images")
LABELS = ("y", "Y", "labels", "targets")
_FEATURES = ("features", "fts")  # of samples where none of the above is there, as files of feature vectors have them


def named_pair(
    arrays: ArrayFile, names: Mapping[str, str | None], split: str | None, *, labelled: bool = True
) -> tuple[str, str | None] | None:
    """Names of samples and labels, of a split or without one.

    Raises:
        UserError: two arrays that may be meant, or only one of the pair.
    """
    samples, labels = (_named(arrays, names, argument, split) for argument in ("x", "y"))
    if samples is None and labels is not None:
        raise UserError(f"{arrays.name} has '{labels}' without its samples: add them, or name them by x.")
    if samples is not None and labels is None and labelled:
        raise UserError(
            f"{arrays.name} has the samples '{samples}' without labels: add them, name them by y, or give the .npy "
            "file of the labels of a .npy file by labels_path."
        )
    return (samples, labels) if samples is not None else None


def split_names(word: str, split: str | None) -> list[str]:
    """What an array may be called: ``x`` itself, or in a split ``x_train``, ``train_x``, ..."""
    if split is None:
        return [word]
    return [one for name in SPLIT_NAMES[split] for one in (f"{word}_{name}", f"{name}_{word}")]


def _named(arrays: ArrayFile, names: Mapping[str, str | None], argument: str, split: str | None) -> str | None:
    # the array that is meant by ``x`` or ``y``
    given = names[argument]
    usual: tuple[tuple[str, ...], ...] = (SAMPLES, _FEATURES) if argument == "x" else (LABELS,)
    there: list[str] = []
    for known in ((given,),) if given is not None else usual:
        there = there or [name for word in known for name in split_names(word, split) if name in arrays]
    if len(there) > 1:
        raise UserError(f"{arrays.name} has both '{there[0]}' and '{there[1]}': say which by {argument}.")
    if not there and given is not None and split is None:
        raise UserError(
            f"{arrays.name} has no array '{given}' ({argument}), only {', '.join(arrays)}{did_you_mean(given, arrays)}"
        )
    return there[0] if there else None
