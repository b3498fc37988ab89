"""What the arrays of samples and labels are called in a file."""

from __future__ import annotations

from collections.abc import Mapping

from metatransfer.checks import did_you_mean
from metatransfer.data.array_files import ArrayFile
from metatransfer.data.division import SPLIT_NAMES
from metatransfer.errors import UserError

SAMPLES = ("x", "X", "data", "images")
LABELS = ("y", "Y", "labels", "targets")
_FEATURES = ("features", "fts")  # of samples where none of the above is there, as files of feature vectors have them


def named_pair(
    arrays: ArrayFile, names: Mapping[str, str | None], split: str | None, where: str
) -> tuple[str, str] | None:
    """Names of samples and labels, of a split or without one.

    Args:
        arrays: what the file has.
        names: ``x`` and ``y`` as the user gave them.
        split: ``"train"``, ``"val"``, ``"test"`` or ``None``.
        where: how to call the file in messages.

    Returns:
        Both names; ``None`` where there is neither.

    Raises:
        UserError: two arrays that may be meant, or only one of the pair.
    """
    samples, labels = (_named(arrays, names, argument, split, where) for argument in ("x", "y"))
    if samples is not None and labels is not None:
        return samples, labels
    if samples is not None or labels is not None:
        raise UserError(
            f"{where} has '{samples or labels}' without its partner: add samples or labels, or name them by x, y."
        )
    return None


def named_samples(
    arrays: ArrayFile, names: Mapping[str, str | None], split: str | None, where: str
) -> tuple[str, str | None] | None:
    """Names of samples and of their labels, where these need not be there.

    Args:
        arrays: as in :func:`named_pair`.
        names: as in :func:`named_pair`.
        split: as in :func:`named_pair`.
        where: as in :func:`named_pair`.

    Returns:
        Both names, ``None`` for labels that are not there; ``None`` where there are no samples.

    Raises:
        UserError: two arrays that may be meant, or labels without samples.
    """
    samples, labels = (_named(arrays, names, argument, split, where) for argument in ("x", "y"))
    if samples is not None:
        return samples, labels
    if labels is not None:
        raise UserError(f"{where} has '{labels}' without its samples: add them, or name them by x.")
    return None


def _named(
    arrays: ArrayFile, names: Mapping[str, str | None], argument: str, split: str | None, where: str
) -> str | None:
    """The array that is meant by an argument, ``x`` or ``y``.

    Raises:
        UserError: two that may be meant, or one that is not there.
    """
    given = names[argument]
    usual = (SAMPLES, _FEATURES) if argument == "x" else (LABELS,)
    there: list[str] = []
    for known in ((given,),) if given is not None else usual:
        words = list(known)
        if split is not None:
            words = [
                f"{a}_{b}" for word in words for name in SPLIT_NAMES[split] for a, b in ((word, name), (name, word))
            ]
        there = there or [word for word in words if word in arrays]
    if len(there) > 1:
        raise UserError(f"{where} has both '{there[0]}' and '{there[1]}': say which by {argument}.")
    if not there and given is not None and split is None:
        raise UserError(
            f"{where} has no array '{given}' ({argument}), only {', '.join(arrays)}{did_you_mean(given, arrays)}"
        )
    return there[0] if there else None
