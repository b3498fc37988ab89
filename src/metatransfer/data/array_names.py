"""What the arrays of samples and labels are called in a file."""

from __future__ import annotations

from collections.abc import Mapping

from metatransfer.checks import did_you_mean
from metatransfer.data.array_files import ArrayFile
from metatransfer.data.division import SPLIT_NAMES
from metatransfer.errors import UserError

SAMPLES = ("x", "X", "data", "images")
LABELS = ("y", "Y", "labels", "targets")


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
    found: list[str | None] = []
    for argument, known in (("x", SAMPLES), ("y", LABELS)):
        given = names[argument]
        words = [given] if given is not None else list(known)
        if split is not None:
            words = [
                f"{a}_{b}" for word in words for name in SPLIT_NAMES[split] for a, b in ((word, name), (name, word))
            ]
        there = [word for word in words if word in arrays]
        if len(there) > 1:
            raise UserError(f"{where} has both '{there[0]}' and '{there[1]}': say which by {argument}.")
        if not there and given is not None and split is None:
            raise UserError(
                f"{where} has no array '{given}' ({argument}), only {', '.join(arrays)}{did_you_mean(given, arrays)}"
            )
        found.append(there[0] if there else None)
    if found[0] is not None and found[1] is not None:
        return found[0], found[1]
    if found[0] is not None or found[1] is not None:
        raise UserError(
            f"{where} has '{found[0] or found[1]}' without its partner: add samples or labels, or name them by x, y."
        )
    return None
