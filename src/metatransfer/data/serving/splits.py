"""Splits of a collection: as given, or divided at random, by class for episodes, otherwise by sample within classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.loader import Stream
from metatransfer.data.serving.settings import Division, Rotation
from metatransfer.data.sources import (
    SPLITS,
    Collection,
    LazyParts,
    Source,
    TaskGenerator,
    View,
    joined,
    of_classes,
    subset,
)
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys

_Part = TypeVar("_Part", covariant=True)
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Splits(Generic[_Part]):
    """The existing splits of a collection, and a description of their division, ``None`` if they are as given."""

    collection: Collection
    parts: Mapping[str, _Part]
    how: str | None

    def part(self, name: str) -> _Part:
        """The samples of a split."""
        if name not in self.parts:
            raise UserError(
                f"{type(self.collection).__name__} has no {name} split, only {', '.join(self.parts)}: add it, or give "
                "all samples undivided."
            )
        return self.parts[name]


def class_splits(
    collection: Collection, division: Division, num_ways: int, eval_num_ways: int
) -> Splits[Source | TaskGenerator]:
    """Splits with disjoint classes, or the generator of their tasks; undivided data are divided at random."""
    opened = collection.opened()
    generator = opened.get("all")
    if isinstance(generator, TaskGenerator):
        return Splits(collection, dict.fromkeys(SPLITS, generator), None)
    if division.by == "sample":
        return sample_splits(collection, division, 0, val_fraction=0.2)
    if collection.divided_by == "class" and len(opened) > 1:
        return Splits(collection, opened, None)
    parts = _labelled_parts(collection)
    if _have_own_classes(parts):
        return Splits(collection, parts, None)
    _check_known_classes(parts)
    whole = joined([parts[name] for name in ("all", *SPLITS) if name in parts])
    fractions, seed = division.fractions(0.2), division.seed or 0
    how = f"classes at random, seed {seed}, {fractions['val']} val, {fractions['test']} test"
    if len(parts) > 1:
        rank_zero_info(
            f"{type(collection).__name__}: {' and '.join(parts)} have the same classes, but episodes need different "
            f"classes in each split: all samples are pooled and divided by class ({how})."
        )
        how = f"{', '.join(parts)} pooled, then {how}"
    needs = {"train": num_ways, "val": eval_num_ways, "test": eval_num_ways}
    names = _divided_classes(whole, needs, fractions, seed)
    return Splits(collection, {one: of_classes(whole, names[one], f"{whole.name} {one}") for one in SPLITS}, how)


def sample_splits(
    collection: Collection, division: Division, seed: int, *, val_fraction: float = 0.1, with_test: bool = True
) -> Splits[View]:
    """Splits with the same classes; undivided samples are divided at random within each class.

    ``seed`` and ``val_fraction`` are the defaults of ``division``. Without ``with_test``, the test split is trained on.
    """
    parts = _labelled_parts(collection)
    seed = seed if division.seed is None else division.seed
    how: str | None = f"stratified at random, seed {seed}"
    if len(parts) > 1 and _have_own_classes(parts):
        rank_zero_info(
            f"{type(collection).__name__}: {' and '.join(parts)} have different classes, but the same classes are "
            "needed in each split: all samples are pooled and divided at random within each class."
        )
        parts = {"all": joined([parts[name] for name in SPLITS if name in parts])}
        how = f"classes of all splits pooled, then {how}"
    _check_known_classes(parts)
    fractions = division.fractions(val_fraction)
    first = "all" if "all" in parts else "train"
    if not with_test:
        parts[first] = joined([parts[name] for name in (first, "test") if name in parts])
        parts.pop("test", None)
    # a test split is never taken from a training part that is given
    wanted = [name for name in fractions if name not in parts and (name == "val" or (first == "all" and with_test))]
    base = parts[first]
    rows = stratified(base, {name: fractions[name] for name in wanted}, seed)
    rows |= {name: np.arange(len(parts[name])) for name in ("val", "test") if name in parts}
    views = {name: subset(parts.get(name, base), rows[name], base.class_names) for name in SPLITS if name in rows}
    return Splits(collection, views, how if wanted else None)


def _labelled_parts(collection: Collection) -> dict[str, Source]:
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


def class_count(source: Source | TaskGenerator, rotation: Rotation) -> int | None:
    """The number of classes that episodes are drawn from; ``None`` for regression and generated tasks."""
    if isinstance(source, TaskGenerator) or not source.class_names:
        return None
    return len(source.class_names) * (4 if rotation == "classes" else 1)


def _have_own_classes(parts: Mapping[str, Source]) -> bool:
    """Whether there are several parts without a common class."""
    names = [set(part.class_names) for part in parts.values()]
    return len(names) > 1 and sum(map(len, names)) == len(set().union(*names))


def _check_known_classes(parts: Mapping[str, Source]) -> None:
    """Raises an error for a single class, and for classes without training samples."""
    base = parts["all" if "all" in parts else "train"]
    if len(base.class_names) < 2:
        raise UserError(
            f"{base.name} has only one class ('{base.class_names[0]}'): a classifier needs two or more; check the "
            "column or the folders of the labels."
        )
    known = set(base.class_names)
    for name, part in parts.items():
        unseen = [one for one in part.class_names if one not in known]
        if unseen:
            raise UserError(
                f"{part.name} has {len(unseen)} classes without any training sample ('{unseen[0]}'), but shares "
                f"others with the training: add training samples, or remove these classes from {name}"
                f"{did_you_mean(unseen[0], known)}"
            )


# ---- random division


def _divided_classes(
    source: Source, needs: Mapping[str, int], fractions: Mapping[str, float], seed: int
) -> dict[str, Sequence[str]]:
    """The classes of each split, in their order, on which the division depends; at least those of one episode."""
    names, total = source.class_names, sum(needs.values())
    if len(names) < total:
        lower = f"lower task.num_ways and eval_task.num_ways to {len(names) // 3}, " if len(names) > 5 else ""
        raise UserError(
            f"{source.name} has {len(names)} classes, but three splits need {' + '.join(map(str, needs.values()))} = "
            f"{total} for {needs['train']}-way training and {needs['test']}-way evaluation: {lower}add classes, or set "
            "division.by to sample, which tests on new samples of the same classes."
        )
    sizes = {one: max(needs[one], round(fractions[one] * len(names))) for one in ("val", "test")}
    while len(names) - sum(sizes.values()) < needs["train"]:
        sizes[max(sizes, key=lambda one: sizes[one] - needs[one])] -= 1
    order = random_permutations(stream_keys(np.array([seed])), len(names))[0]
    test, val = sizes["test"], sizes["test"] + sizes["val"]
    parts = {"test": order[:test], "val": order[test:val], "train": order[val:]}
    return {split: [names[index] for index in sorted(part)] for split, part in parts.items()}


def divided_at_random(members: _Rows, fractions: Mapping[str, float], who: str) -> dict[str, _Rows]:
    """Gives each part its fraction of shuffled samples, at least one, and training the rest, at least one."""
    if len(members) <= len(fractions):
        raise UserError(
            f"{who} has {len(members)} sample{'s' * (len(members) != 1)}, but needs one for each of "
            f"{', '.join(['train', *fractions])}: add some, or leave it out."
        )
    found, start = {}, 0
    for place, (part, fraction) in enumerate(fractions.items()):
        left = len(members) - start - (len(fractions) - place)  # one each for the remaining parts and for training
        count = min(max(1, round(fraction * len(members))), left)
        found[part] = members[start : start + count]
        start += count
    return found | {"train": members[start:]}


def shuffled(seed: int, count: int) -> _Rows:
    """``(count,)`` samples in the random order in which they are divided."""
    order: _Rows = random_permutations(stream_keys(seed, Stream.DIVISION, np.array([0])), count)[0]
    return order


def stratified(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, _Rows]:
    """Divides every class at random, as :func:`divided_at_random` does."""
    order = shuffled(seed, len(source))
    found = [
        divided_at_random(order[source.labels[order] == label], fractions, f"{source.name}: class '{name}'")
        for label, name in enumerate(source.class_names)
    ]
    return {part: np.sort(np.concatenate([one[part] for one in found])) for part in ("train", *fractions)}


def few_labels(view: View, count: int, seed: int) -> View:
    """``count`` samples of each class, in the order of the whole split."""
    least = int(view.sizes.argmin())
    if view.sizes[least] < count:
        raise UserError(
            f"labels_per_class={count} is more than the {view.sizes[least]} training samples of class "
            f"'{view.class_names[least]}': lower it to {view.sizes[least]}."
        )
    order = random_permutations(stream_keys(seed, Stream.FEW_LABELS, np.array([0])), len(view))[0]
    by_class = order[view.labels[order].argsort(kind="stable")]
    starts = np.concatenate([[0], view.sizes.cumsum()[:-1]])
    chosen = np.sort(np.concatenate([by_class[start : start + count] for start in starts]))
    return subset(view.base, view.indices[chosen], view.class_names)
