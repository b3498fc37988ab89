"""How labelled samples are divided into splits, class by class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import did_you_mean
from metatransfer.data.samplers import Stream
from metatransfer.data.sources import Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys


def check_classes(parts: Mapping[str, Source], first: str) -> None:
    """Refuses what no classifier can learn.

    Raises:
        UserError: no samples, one class only, or classes that the training does not have.
    """
    base = parts[first]
    for name, source in parts.items():
        if not len(source):
            raise UserError(f"{source.name} has no samples: add some, or leave {name} out.")
    if len(base.class_names) < 2:
        raise UserError(
            f"{base.name} has one class only ('{base.class_names[0]}'): a classifier needs two or more; check the "
            "column or the folders of the labels."
        )
    known = set(base.class_names)
    for name, source in parts.items():
        unseen = [one for one in source.class_names if one not in known]
        if unseen:
            count = f"{len(unseen)} classes" if len(unseen) > 1 else "a class"
            raise UserError(
                f"{source.name} has {count} that the training has no sample of ('{unseen[0]}'): a classifier cannot "
                f"know {'them' if len(unseen) > 1 else 'it'}; add training samples, or take "
                f"{'them' if len(unseen) > 1 else 'it'} out of {name}{did_you_mean(unseen[0], known)}"
            )


def stratified(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Divides every class at random: at least one sample to each part, and the rest, at least one, to training.

    Raises:
        UserError: a class has fewer samples than there are parts.
    """
    order = random_permutations(stream_keys(seed, Stream.DIVISION, np.array([0])), len(source))[0]
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("train", *fractions)}
    for label, name in enumerate(source.class_names):
        members = order[source.labels[order] == label]
        if len(members) <= len(fractions):
            raise UserError(
                f"{source.name}: class '{name}' has {len(members)} sample{'s' * (len(members) != 1)}, but needs one "
                f"for each of {', '.join(found)}: add some, or leave the class out."
            )
        start = 0
        for place, (part, fraction) in enumerate(fractions.items()):
            left = len(members) - start - (len(fractions) - place)  # one each for the parts to come, and for training
            count = min(max(1, round(fraction * len(members))), left)
            found[part].append(members[start : start + count])
            start += count
        found["train"].append(members[start:])
    return {part: np.sort(np.concatenate(rows)) for part, rows in found.items()}
