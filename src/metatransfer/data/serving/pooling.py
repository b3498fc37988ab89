"""Splits of a collection: as given, or pooled and divided again if a server needs other classes in them."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_info

from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.division import RandomDivision
from metatransfer.data.sources import (
    SPLITS,
    Collection,
    JoinedSource,
    LazyParts,
    Source,
    TaskGenerator,
    joined,
    of_classes,
)
from metatransfer.errors import UserError


def labelled_parts(collection: Collection) -> dict[str, Source]:
    """All parts of a collection, opened."""
    found: dict[str, Source] = {}
    for name, part in collection.opened().items():
        if not isinstance(part, Source):
            raise UserError(
                f"{type(collection).__name__} generates tasks and has no samples: serve it with EpisodicDataModule."
            )
        part.labels  # noqa: B018 - raises an error for targets that are not classes
        if not len(part):
            raise UserError(f"{part.name} has no samples: add some, or leave {name} out.")
        found[name] = part
    return found


def generator_of(collection: Collection) -> TaskGenerator | None:
    """The generator of the training tasks, ``None`` if they are drawn from samples; opens no samples."""
    opened = collection.opened()
    found = None if isinstance(opened, LazyParts) else opened.get("all", opened.get("train"))
    return found if isinstance(found, TaskGenerator) else None


def have_own_classes(parts: Mapping[str, Source]) -> bool:
    """Whether there are several parts without a common class."""
    names = [set(part.class_names) for part in parts.values()]
    return len(names) > 1 and sum(map(len, names)) == len(set().union(*names))


class ClassSplits:
    """Splits with disjoint classes, for episodes.

    Args:
        collection: the data.
        division: division of the classes, if the collection does not divide them.
        ways: number of classes of an episode in training and in evaluation.

    Attributes:
        how: description of the division, ``None`` if as given; available once a split was opened.
    """

    def __init__(self, collection: Collection, division: RandomDivision, ways: tuple[int, int]) -> None:
        self.collection, self.division, self.ways = collection, division, ways
        self.how: str | None = None
        self._found: dict[str, Source | TaskGenerator] = {}

    def source(self, split: str) -> Source | TaskGenerator:
        """The samples of a split, or the generator of its tasks."""
        if split not in self._found:
            self._open(split)
        if split not in self._found:
            parts = ", ".join(self.collection.opened())
            raise UserError(f"{type(self.collection).__name__} has no samples for {split}, only for {parts}: add some.")
        return self._found[split]

    def _open(self, split: str) -> None:
        opened = self.collection.opened()
        generator = opened.get("all")
        if isinstance(generator, TaskGenerator):
            self._found = dict.fromkeys(SPLITS, generator)
        elif self.collection.divided_by == "class" and len(opened) > 1:
            self._found |= {split: opened[split]} if split in opened else {}
        else:
            parts = labelled_parts(self.collection)
            self._found = dict(parts) if have_own_classes(parts) else dict(self._divided(parts))

    def _divided(self, parts: Mapping[str, Source]) -> dict[str, Source]:
        _check_same_classes(parts)
        whole = joined([parts[name] for name in ("all", *SPLITS) if name in parts])
        self.how = str(self.division)
        if len(parts) > 1:
            self.how = f"{', '.join(parts)} pooled, then {self.how}"
            rank_zero_info(
                f"{type(self.collection).__name__}: {' and '.join(parts)} have the same classes, but episodes need "
                f"different classes in each split: all samples are pooled and divided by class ({self.division})."
            )
        classes = self.division(whole.class_names, *self.ways, whole.name)
        return {split: of_classes(whole, names, f"{whole.name} {split}") for split, names in classes.items()}


def _check_same_classes(parts: Mapping[str, Source]) -> None:
    """Raises an error if parts share some but not all classes."""
    known = set(parts.get("train", parts.get("all", next(iter(parts.values())))).class_names)
    for name, part in parts.items():
        alone = [one for one in part.class_names if one not in known]
        if alone:
            raise UserError(
                f"{part.name} shares some classes with the training, but '{alone[0]}' is only in {name}: give all "
                f"splits the same classes, or each its own classes{did_you_mean(alone[0], known)}"
            )


def sample_parts(collection: Collection) -> tuple[dict[str, Source], bool]:
    """The parts of a collection, with the same classes in each, and whether they were pooled."""
    parts = labelled_parts(collection)
    was_pooled = len(parts) > 1 and have_own_classes(parts)
    if was_pooled:
        rank_zero_info(
            f"{type(collection).__name__}: {' and '.join(parts)} have different classes, but labelled batches need the "
            "same classes in each split: all samples are pooled and divided at random within each class."
        )
        parts = {"all": JoinedSource([parts[name] for name in SPLITS if name in parts])}
    _check_classes(parts, "all" if "all" in parts else "train")
    return parts, was_pooled


def _check_classes(parts: Mapping[str, Source], first: str) -> None:
    """Raises an error for a single class, and for classes without training samples."""
    base = parts[first]
    if len(base.class_names) < 2:
        raise UserError(
            f"{base.name} has one class only ('{base.class_names[0]}'): a classifier needs two or more; check the "
            "column or the folders of the labels."
        )
    known = set(base.class_names)
    for name, source in parts.items():
        unseen = [one for one in source.class_names if one not in known]
        if unseen:
            raise UserError(
                f"{source.name} has {len(unseen)} classes without any training sample ('{unseen[0]}'): add training "
                f"samples, or remove these classes from {name}{did_you_mean(unseen[0], known)}"
            )
