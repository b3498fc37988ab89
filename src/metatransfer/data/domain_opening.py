"""How domains are opened, divided and compared; what is refused names the domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import did_you_mean
from metatransfer.data.augment import apply_transforms
from metatransfer.data.domain_stream import Domain, domain_key
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.labelled_sampler import Split
from metatransfer.data.samplers import SPLITS, Stream
from metatransfer.data.sources import Source
from metatransfer.data.unlabelled import NO_CLASS, Relabelled, UnlabelledPart, first_not_finite, joined
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys


@contextlib.contextmanager
def of_domain(who: str) -> Iterator[None]:
    """Has complaints name the domain.

    Args:
        who: ``"source 'amazon'"``.

    Yields:
        Nothing.

    Raises:
        UserError: any that comes up inside.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{who}: {error}") from error


def open_source(
    name: str, data: LabelledDataModule, class_names: tuple[str, ...], place: int, *, hold_out: bool = True
) -> Domain:
    """A source, whose classes are numbered as those of all sources are.

    Args:
        name: the user's.
        data: its samples.
        class_names: of the first source.
        place: which of the sources it is.
        hold_out: whether its validation samples are kept from training.

    Returns:
        Its training and validation.

    Raises:
        UserError: as its data, or samples that are no numbers.
    """
    with of_domain(f"source '{name}'"):
        given = {split: data.split(split) for split in ("train", "val")}
        _check_samples({split: one.source for split, one in given.items()}, data)
        if not hold_out:
            given["train"] = _both(given["train"], given["val"])
    splits = {split: Split(one.source, one.indices, class_names) for split, one in given.items()}
    labels = {split: one.labels for split, one in splits.items()}
    return Domain(name, data, splits, labels, domain_key(data.seed, 0, place))


def _both(train: Split, val: Split) -> Split:
    """Training and validation samples, in the order of their source where it is one."""
    if train.source is val.source:
        return Split(train.source, np.sort(np.concatenate([train.indices, val.indices])), train.class_names)
    rows = np.concatenate([train.indices, len(train.source) + val.indices])
    return Split(joined([train.source, val.source]), rows, train.class_names)


def open_target(
    name: str,
    data: LabelledDataModule,
    parts: Mapping[str, UnlabelledPart],
    class_names: tuple[str, ...],
    place: int,
    *,
    seed: int,
    transductive: bool,
) -> Domain:
    """A target, divided without a look at its labels.

    Args:
        name: the user's.
        data: whose fractions, transform and augmentation hold.
        parts: its samples.
        class_names: of the sources.
        place: which of the targets it is.
        seed: which division and order.
        transductive: whether all its samples are training, validation and test at once.

    Returns:
        Its splits, and the classes of their samples beside them.

    Raises:
        UserError: too few samples, samples that are no numbers, or other classes than those of the sources.
    """
    who = f"target '{name}'"
    with of_domain(who):
        for part in parts.values():
            if not len(part.source):
                raise UserError(f"{part.source.name} has no samples: add some.")
        _check_samples({part: one.source for part, one in parts.items()}, data)
        found = _all_at_once(parts) if transductive else _divided(parts, data, seed)
    words = np.unique(np.concatenate([one[2] for one in found.values()])).tolist()
    named = [word for word in words if word]
    if named:
        # some labels of few samples tell nothing of the classes that there are
        check_same_classes(named, class_names, who, "the sources", whole="" not in words)
    numbers = {word: number for number, word in enumerate(class_names)} | {"": -1}
    splits = {split: Split(source, rows, (NO_CLASS,)) for split, (source, rows, _) in found.items()}
    labels = {split: np.array([numbers[word] for word in one[2].tolist()], np.int64) for split, one in found.items()}
    return Domain(name, data, splits, labels, domain_key(seed, 1, place))


_Found = dict[str, tuple[Relabelled, NDArray[np.int64], NDArray[np.str_]]]


def _words(part: UnlabelledPart) -> NDArray[np.str_]:
    return part.withheld if part.withheld is not None else np.full(len(part.source), "")


def _all_at_once(parts: Mapping[str, UnlabelledPart]) -> _Found:
    """All samples, as every split."""
    source = Relabelled(joined([part.source for part in parts.values()]))
    words = np.concatenate([_words(part) for part in parts.values()])
    return {split: (source, np.arange(len(source)), words) for split in SPLITS}


def _divided(parts: Mapping[str, UnlabelledPart], data: LabelledDataModule, seed: int) -> _Found:
    """What comes undivided is divided sample by sample: classes have no part in it.

    Raises:
        UserError: fewer samples than splits.
    """
    first = "all" if "all" in parts else "train"
    base, words = Relabelled(parts[first].source), _words(parts[first])
    fractions = {"val": data.val_fraction} | ({"test": data.test_fraction} if first == "all" else {})
    fractions = {split: fraction for split, fraction in fractions.items() if split not in parts}
    if len(base) <= len(fractions):
        raise UserError(
            f"{base.name} has {len(base)} sample{'s' * (len(base) != 1)}, but needs one for each of "
            f"{', '.join(['train', *fractions])}: add some."
        )
    order = random_permutations(stream_keys(seed, Stream.DIVISION, np.array([0])), len(base))[0]
    taken, start = {}, 0
    for place, (split, fraction) in enumerate(fractions.items()):
        left = len(base) - start - (len(fractions) - place)  # one each for the splits to come, and for training
        count = min(max(1, round(fraction * len(base))), left)
        taken[split] = np.sort(order[start : start + count])
        start += count
    taken["train"] = np.sort(order[start:])
    found = {split: (base, rows, words[rows]) for split, rows in taken.items()}
    for split in ("val", "test"):
        if split in parts:
            source = Relabelled(parts[split].source)
            found[split] = source, np.arange(len(source)), _words(parts[split])
    return {split: found[split] for split in SPLITS if split in found}


def with_labels(domain: Domain, class_names: tuple[str, ...], place: int, seed: int) -> Domain:
    """A target as a source: what it would be worth to know its labels.

    Args:
        domain: the target.
        class_names: of all sources.
        place: which of the targets it is.
        seed: which order.

    Returns:
        Its training and validation, labelled.

    Raises:
        UserError: it has samples whose labels are not known.
    """
    splits: dict[str, Split] = {}
    for split in ("train", "val"):
        part, labels = domain.splits[split], domain.labels[split]
        if (labels < 0).any():
            raise UserError(
                f"target '{domain.name}' has {int((labels < 0).sum())} {split} samples without labels, but to be "
                "trained on as an oracle it needs all of them: give the labels, or leave the oracle out."
            )
        present, own = np.unique(labels, return_inverse=True)
        whole = np.zeros(len(part.source), np.int64)  # samples of other splits are never asked for
        whole[part.indices] = own
        source = Relabelled(part.source, whole, [class_names[label] for label in present])
        splits[split] = Split(source, part.indices, class_names)
    labels_of = {split: one.labels for split, one in splits.items()}
    return Domain(domain.name, domain.data, splits, labels_of, domain_key(seed, 0, place))


def check_same_classes(
    names: Sequence[str], known: Sequence[str], who: str, others: str, *, whole: bool = True
) -> None:
    """Refuses a domain whose classes are not those of the others.

    Args:
        names: its classes.
        known: those of the others.
        who: the domain.
        others: what the others are called.
        whole: whether all classes of the domain are known.

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
    """Refuses domains whose samples no one network takes.

    Args:
        domains: with what each is called.

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
    """Shape of one sample after the domain's transform.

    Args:
        domain: any.

    Returns:
        The shape.
    """
    x = domain.splits["train"].read(np.array([0]), torch.device("cpu"))
    assert isinstance(x, Tensor)
    return tuple(apply_transforms(domain.data.transform, x).shape[1:])


def _check_samples(sources: Mapping[str, Source], data: LabelledDataModule) -> None:
    """Refuses texts, and numbers that are none.

    Raises:
        UserError: either.
    """
    for source in {id(one): one for one in sources.values()}.values():
        sample: object = source.read(torch.tensor([0]), torch.device("cpu"))  # texts are tokens, whatever it says
        if not isinstance(sample, Tensor):
            raise UserError(
                f"{type(data).__name__} serves texts, but domain adaptation takes samples of numbers: give features "
                "of the texts, by ArrayDataModule."
            )
        bad = first_not_finite(source)
        if bad is not None:
            raise UserError(f"sample {bad} of {source.name} holds NaN or infinity: mend it, or leave it out.")
