"""The splits of labelled samples."""

from __future__ import annotations

import numpy as np

from metatransfer.data.sampling.division import stratified
from metatransfer.data.sampling.sampler import Stream
from metatransfer.data.serving.pooling import sample_parts
from metatransfer.data.serving.settings import Division
from metatransfer.data.sources import SPLITS, Collection, Source, View, joined, subset
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys


class LabelledSplits:
    """Training, validation and test samples of one collection, with the same classes.

    Args:
        collection: the data.
        division: division of undivided data.
        seed: seed of the labels that are kept; also of the division, unless it has one.
        labels_per_class: number of training samples of each class; defaults to all.
        with_test: whether to hold out test samples; otherwise the test split is trained on, too.

    Attributes:
        views: the existing splits, with the class numbers of the training split.
        how: description of the division.
    """

    def __init__(
        self,
        collection: Collection,
        division: Division,
        seed: int,
        labels_per_class: int | None = None,
        with_test: bool = True,
    ) -> None:
        parts, was_pooled = sample_parts(collection)
        fractions = division.fractions(0.1)
        if not with_test:
            first = "all" if "all" in parts else "train"
            together = joined([parts[name] for name in (first, "test") if name in parts])
            parts = {first: together} | ({"val": parts["val"]} if "val" in parts else {})
            fractions["test"] = 0.0
        self.collection = collection
        division_seed = seed if division.seed is None else division.seed
        self.views = _divided(parts, fractions, division_seed)
        self.how = f"stratified at random, seed {division_seed}"
        if was_pooled:
            self.how = f"classes of all splits pooled, then {self.how}"
        elif len({id(view.base) for view in self.views.values()}) == len(self.views):
            self.how = "as given"
        if labels_per_class is not None:
            self.views["train"] = _few(self.views["train"], labels_per_class, seed)

    def view(self, name: str) -> View:
        """The samples of a split."""
        if name not in self.views:
            raise UserError(
                f"{type(self.collection).__name__} has no {name} split, only {', '.join(self.views)}: add it, or give "
                "all samples undivided."
            )
        return self.views[name]


def _divided(parts: dict[str, Source], fractions: dict[str, float], seed: int) -> dict[str, View]:
    first = "all" if "all" in parts else "train"
    base = parts[first]
    # a test split is never taken from a training part that is given
    wanted = fractions if first == "all" else {"val": fractions["val"]}
    fractions = {name: wanted[name] for name in wanted if name not in parts and wanted[name]}
    names = base.class_names
    views = {name: subset(base, rows, names) for name, rows in stratified(base, fractions, seed).items()}
    views |= {
        name: subset(parts[name], np.arange(len(parts[name])), names) for name in ("val", "test") if name in parts
    }
    return {name: views[name] for name in SPLITS if name in views}


def _few(view: View, count: int, seed: int) -> View:
    """``count`` samples of each class, in the order of the whole split."""
    least = int(view.sizes.argmin())
    if view.sizes[least] < count:
        raise UserError(
            f"labels_per_class={count} is more than the {view.sizes[least]} training samples of class "
            f"'{view.class_names[least]}': lower it."
        )
    order = random_permutations(stream_keys(seed, Stream.FEW_LABELS, np.array([0])), len(view))[0]
    by_class = order[view.labels[order].argsort(kind="stable")]
    starts = np.concatenate([[0], view.sizes.cumsum()[:-1]])
    chosen = np.sort(np.concatenate([by_class[start : start + count] for start in starts]))
    return subset(view.base, view.indices[chosen], view.class_names)
