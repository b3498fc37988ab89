"""Opens and divides domains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sampling.division import divided_at_random, shuffled
from metatransfer.data.sampling.domains import Domain, domain_key
from metatransfer.data.sampling.feature_transforms import Standardize
from metatransfer.data.serving.domain_checks import check_finite, check_same_classes, of_domain
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.sources import NO_CLASS, SPLITS, Encoder, Source, UnlabelledPart, View, joined, subset
from metatransfer.errors import UserError


def without_test(data: LabelledDataModule) -> LabelledDataModule:
    """The same data with the test samples in the training, for tests on other data."""
    twin = copy.copy(data)
    twin.with_test, twin._splits, twin.trainer = False, None, None
    return twin


def open_source(
    name: str,
    data: LabelledDataModule,
    class_names: tuple[str, ...],
    place: int,
    encoder: Encoder | None = None,
    *,
    hold_out: bool = True,
) -> Domain:
    """A source, with the class numbers of ``class_names``."""
    with of_domain(f"source '{name}'"):
        given = {split: _encoded(data.splits.view(split), encoder) for split in ("train", "val")}
        check_finite([one.base for one in given.values()])
        if not hold_out:
            given["train"] = _both(given["train"], given["val"])
    splits = {split: subset(one.base, one.indices, class_names) for split, one in given.items()}
    return _as_source(name, data, splits, domain_key(data.seed, 0, place))


_Any = TypeVar("_Any", bound=Source)


def _encoded(source: _Any, encoder: Encoder | None) -> _Any:
    return source if encoder is None else cast(_Any, source.encoded(encoder))


def _as_source(name: str, data: LabelledDataModule, splits: Mapping[str, Source], key: int) -> Domain:
    labels = {split: one.labels for split, one in splits.items()}
    return Domain(name, splits, labels, key, data.processing.changes(training=True), data.balance)


def _both(train: View, val: View) -> View:
    """Training and validation samples, in the order of their source if it is the same."""
    if train.base is val.base:
        return subset(train.base, np.sort(np.concatenate([train.indices, val.indices])), train.class_names)
    rows = np.concatenate([train.indices, len(train.base) + val.indices])
    return subset(joined([train.base, val.base]), rows, train.class_names)


def open_target(
    name: str,
    data: LabelledDataModule,
    parts: Mapping[str, UnlabelledPart],
    class_names: tuple[str, ...],
    place: int,
    encoder: Encoder | None = None,
    *,
    seed: int,
    transductive: bool,
) -> Domain:
    """A target, divided without using its labels."""
    with of_domain(f"target '{name}'"):
        for part in parts.values():
            if not len(part.source):
                raise UserError(f"{part.source.name} has no samples: add some.")
        parts = {split: part._replace(source=_encoded(part.source, encoder)) for split, part in parts.items()}
        check_finite([one.source for one in parts.values()])
        found = _all_at_once(parts) if transductive else _divided(parts, data.division.fractions(0.1), seed)
    words = np.unique(np.concatenate([one[2] for one in found.values()])).tolist()
    if named := [word for word in words if word]:
        # if only some samples have labels, some classes may be missing
        check_same_classes(named, class_names, f"target '{name}'", "the sources", whole="" not in words)
    numbers = {word: number for number, word in enumerate(class_names)} | {"": -1}
    splits = {split: View(source, rows, np.zeros_like(rows), (NO_CLASS,)) for split, (source, rows, _) in found.items()}
    labels = {split: np.array([numbers[word] for word in one[2].tolist()], np.int64) for split, one in found.items()}
    return Domain(name, splits, labels, domain_key(seed, 1, place), data.processing.changes(training=True))


_Found = dict[str, tuple[Source, NDArray[np.int64], NDArray[np.str_]]]


def _words(part: UnlabelledPart) -> NDArray[np.str_]:
    return part.withheld if part.withheld is not None else np.full(len(part.source), "")


def _all_at_once(parts: Mapping[str, UnlabelledPart]) -> _Found:
    """All samples, as every split."""
    source = joined([part.source for part in parts.values()])
    words = np.concatenate([_words(part) for part in parts.values()])
    return {split: (source, np.arange(len(source)), words) for split in SPLITS}


def _divided(parts: Mapping[str, UnlabelledPart], wanted: Mapping[str, float], seed: int) -> _Found:
    """Divides undivided data sample by sample, independently of classes."""
    first = "all" if "all" in parts else "train"
    base, words = parts[first].source, _words(parts[first])
    fractions = {
        split: wanted[split] for split in ("val", "test") if split not in parts and (split == "val" or first == "all")
    }
    if len(base) <= len(fractions):
        raise UserError(
            f"{base.name} has {len(base)} sample{'s' * (len(base) != 1)}, but needs one for each of "
            f"{', '.join(['train', *fractions])}: add some."
        )
    taken = divided_at_random(shuffled(seed, len(base)), fractions)
    found = {split: (base, np.sort(rows), words[np.sort(rows)]) for split, rows in taken.items()}
    for split in ("val", "test"):
        if split in parts:
            source = parts[split].source
            found[split] = source, np.arange(len(source)), _words(parts[split])
    return {split: found[split] for split in SPLITS if split in found}


def with_labels(
    domain: Domain, data: LabelledDataModule, class_names: tuple[str, ...], place: int, seed: int
) -> Domain:
    """A target as a source, to measure the value of its labels."""
    splits: dict[str, View] = {}
    for split in ("train", "val"):
        part, labels = domain.splits[split], domain.labels[split]
        if (labels < 0).any():
            raise UserError(
                f"target '{domain.name}' has {int((labels < 0).sum())} {split} samples without labels, but an oracle "
                "is trained on all labels: give them, or leave the oracle out."
            )
        splits[split] = View(part, np.arange(len(part)), labels, class_names)
    return _as_source(domain.name, data, splits, domain_key(seed, 0, place))


def fitted(who: str, domains: Sequence[Domain]) -> Standardize:
    """The z-scores of the training samples of some domains."""
    found = Standardize.of(chunk for domain in domains for chunk in domain.chunks())
    if not (found.mean.isfinite().all() and found.deviation.isfinite().all()):
        raise UserError(
            f"the samples of {who} are NaN or infinite after their transform: fix them, or leave the transform out."
        )
    if found.constant:
        warnings.warn(
            f"{found.constant} of {len(found.mean)} features of {who} never change in training and become 0 by "
            "standardize.",
            stacklevel=2,
        )
    return found
