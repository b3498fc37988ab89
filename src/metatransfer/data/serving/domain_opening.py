"""How domains are opened, divided and compared; errors name the domain."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.augment import apply_transforms
from metatransfer.data.sampling.division import divided_at_random, shuffled
from metatransfer.data.sampling.domains import Domain, domain_key
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.sources import (
    NO_CLASS,
    SPLITS,
    Encoder,
    Source,
    UnlabelledPart,
    View,
    first_not_finite,
    joined,
    subset,
)
from metatransfer.errors import UserError


@contextlib.contextmanager
def of_domain(who: str) -> Iterator[None]:
    """Puts the name of the domain before the errors that come up inside: ``"source 'amazon'"``.

    Yields:
        Nothing.

    Raises:
        UserError: any that comes up inside.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{who}: {error}") from error


def without_test(data: LabelledDataModule) -> LabelledDataModule:
    """The same data with the test samples in the training, for what is tested on other data."""
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
    """A source, whose classes are numbered as those of all sources are."""
    with of_domain(f"source '{name}'"):
        check_no_texts(data)
        given = {split: _encoded(data.splits.view(split), encoder) for split in ("train", "val")}
        _check_finite([one.base for one in given.values()])
        if not hold_out:
            given["train"] = _both(given["train"], given["val"])
    splits = {split: subset(one.base, one.indices, class_names) for split, one in given.items()}
    labels = {split: one.labels for split, one in splits.items()}
    return _domain(name, data, splits, labels, domain_key(data.seed, 0, place), balanced=True)


_Any = TypeVar("_Any", bound=Source)


def _encoded(source: _Any, encoder: Encoder | None) -> _Any:
    return source if encoder is None else cast(_Any, source.encoded(encoder))


def _domain(
    name: str,
    data: LabelledDataModule,
    splits: Mapping[str, Source],
    labels: Mapping[str, NDArray[np.int64]],
    key: int,
    *,
    balanced: bool,
) -> Domain:
    changes = data.processing.changes(training=True)
    return Domain(name, splits, labels, key, changes, data.balance if balanced else "none")


def _both(train: View, val: View) -> View:
    """Training and validation samples, in the order of their source where it is one."""
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
    """A target, divided without looking at its labels.

    Raises:
        UserError: too few samples, samples that are not finite, or other classes than those of the sources.
    """
    who = f"target '{name}'"
    with of_domain(who):
        for part in parts.values():
            if not len(part.source):
                raise UserError(f"{part.source.name} has no samples: add some.")
        parts = {name: part._replace(source=_encoded(part.source, encoder)) for name, part in parts.items()}
        _check_finite([one.source for one in parts.values()])
        found = _all_at_once(parts) if transductive else _divided(parts, data.division.fractions(0.1), seed)
    words = np.unique(np.concatenate([one[2] for one in found.values()])).tolist()
    named = [word for word in words if word]
    if named:
        # some labels of few samples tell nothing of the classes that there are
        check_same_classes(named, class_names, who, "the sources", whole="" not in words)
    numbers = {word: number for number, word in enumerate(class_names)} | {"": -1}
    splits = {split: View(source, rows, np.zeros_like(rows), (NO_CLASS,)) for split, (source, rows, _) in found.items()}
    labels = {split: np.array([numbers[word] for word in one[2].tolist()], np.int64) for split, one in found.items()}
    return _domain(name, data, splits, labels, domain_key(seed, 1, place), balanced=False)


_Found = dict[str, tuple[Source, NDArray[np.int64], NDArray[np.str_]]]


def _words(part: UnlabelledPart) -> NDArray[np.str_]:
    return part.withheld if part.withheld is not None else np.full(len(part.source), "")


def _all_at_once(parts: Mapping[str, UnlabelledPart]) -> _Found:
    """All samples, as every split."""
    source = joined([part.source for part in parts.values()])
    words = np.concatenate([_words(part) for part in parts.values()])
    return {split: (source, np.arange(len(source)), words) for split in SPLITS}


def _divided(parts: Mapping[str, UnlabelledPart], wanted: Mapping[str, float], seed: int) -> _Found:
    """What comes undivided is divided sample by sample, so that classes play no role.

    Raises:
        UserError: fewer samples than splits.
    """
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
    """A target as a source: what it would be worth to know its labels.

    Raises:
        UserError: it has samples whose labels are not known.
    """
    splits: dict[str, View] = {}
    for split in ("train", "val"):
        part, labels = domain.splits[split], domain.labels[split]
        if (labels < 0).any():
            raise UserError(
                f"target '{domain.name}' has {int((labels < 0).sum())} {split} samples without labels, but to be "
                "trained on as an oracle it needs all of them: give the labels, or leave the oracle out."
            )
        splits[split] = View(part, np.arange(len(part)), labels, class_names)
    labels_of = {split: one.labels for split, one in splits.items()}
    return _domain(domain.name, data, splits, labels_of, domain_key(seed, 0, place), balanced=True)


def check_same_classes(
    names: Sequence[str], known: Sequence[str], who: str, others: str, *, whole: bool = True
) -> None:
    """Raises an error if the classes of a domain are not those of the others.

    Raises:
        UserError: with the first class that only one of them has.
    """
    unknown, missing = [one for one in names if one not in known], [one for one in known if whole and one not in names]
    if not unknown and not missing:
        return
    more = f" and {len(unknown or missing) - 1} more" if len(unknown or missing) > 1 else ""
    told = f"has '{unknown[0]}'{more}, which {others} lack" if unknown else f"lacks '{missing[0]}'{more} of {others}"
    near = did_you_mean(unknown[0], known) if unknown else "."
    raise UserError(
        f"all domains must have the same classes, but {who} {told}: rename or leave out classes until they agree{near}"
    )


def check_same_shape(domains: Sequence[tuple[str, Domain]]) -> None:
    """Raises an error if samples of domains differ in shape.

    Raises:
        UserError: two shapes.
    """
    shapes = [sample_shape(domain) for _, domain in domains]
    for (who, _), shape in zip(domains, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"all domains must have samples of one shape, but those of {domains[0][0]} are {shapes[0]} and those "
                f"of {who} {shape}: set image_size and channels alike, or bring the features to one size."
            )


def sample_shape(domain: Domain) -> tuple[int, ...]:
    """Shape of one sample after the domain's transform."""
    x = domain.splits["train"].read(torch.tensor([0]), torch.device("cpu"))
    assert isinstance(x, Tensor)
    return tuple(apply_transforms(domain.changes.transform, x).shape[1:])


def check_no_texts(data: LabelledDataModule) -> None:
    """Raises an error for texts.

    Raises:
        UserError: the data is made of texts.
    """
    if data.collection.of_texts:
        raise UserError(
            f"{type(data.collection).__name__} serves texts, but domain adaptation needs vectors or images: give "
            "features of the texts, by Arrays."
        )


def _check_finite(sources: Sequence[Source]) -> None:
    """Raises an error for samples that hold NaN or infinity.

    Raises:
        UserError: with the first of them.
    """
    for source in {id(one): one for one in sources}.values():
        bad = first_not_finite(source)
        if bad is not None:
            raise UserError(f"sample {bad} of {source.name} holds NaN or infinity: fix it, or leave it out.")
