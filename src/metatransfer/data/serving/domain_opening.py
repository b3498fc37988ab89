"""Opens, checks and divides domains; errors name the domain."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.augment import Standardize
from metatransfer.data.sampling.domains import Domain, domain_key
from metatransfer.data.serving.base import check_name
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.splits import divided_at_random, shuffled
from metatransfer.data.sources import NO_CLASS, SPLITS, Encoder, Source, UnlabelledPart, View, encoded, joined, subset
from metatransfer.errors import UserError


@contextlib.contextmanager
def of_domain(who: str) -> Iterator[None]:
    """Prefixes errors raised inside with the name of the domain: ``"source 'amazon'"``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{who}: {error}") from error


# ---- requirements


def check_side(side: str, domains: Mapping[str, LabelledDataModule], argument: str, batch_size: int) -> None:
    """Raises an error for no domain, an invalid name or option, or a batch without a sample of every domain."""
    if not domains:
        raise UserError(f"there are no {side}s: give at least one, <name>: <collection or path>.")
    for name, data in domains.items():
        check_name(side, str(name))
        if data.processing.mix is not None:
            raise UserError(
                f"{side} '{name}' has processing.mix, but domain adaptation needs class labels: leave it out."
            )
        needs_labels = {"labels_per_class": data.labels_per_class is not None, "balance": data.balance != "none"}
        if side == "target" and (used := [option for option, given in needs_labels.items() if given]):
            raise UserError(
                f"target '{name}' has {used[0]}, which needs labels, but a target is unlabelled: leave it out."
            )
    if batch_size < len(domains):
        raise UserError(
            f"{argument} must be {len(domains)} or more for a batch to have samples of {', '.join(domains)}, but is "
            f"{batch_size}."
        )


def check_same_classes(
    names: Sequence[str], known: Sequence[str], who: str, others: str, *, whole: bool = True
) -> None:
    """Raises an error if a domain has other classes than the others; unless ``whole``, it may lack some."""
    unknown, missing = [one for one in names if one not in known], [one for one in known if whole and one not in names]
    if not unknown and not missing:
        return
    more = f" and {len(unknown or missing) - 1} more" if len(unknown or missing) > 1 else ""
    found = f"has '{unknown[0]}'{more}, which {others} lack" if unknown else f"lacks '{missing[0]}'{more} of {others}"
    near = did_you_mean(unknown[0], known) if unknown else "."
    raise UserError(
        f"all domains must have the same classes, but {who} {found}: rename or remove classes until they agree{near}"
    )


def check_same_shape(domains: Sequence[tuple[str, Domain]]) -> None:
    """Raises an error if samples of domains differ in shape."""
    first, shape = domains[0][0], domains[0][1].sample_shape
    for who, domain in domains:
        if domain.sample_shape != shape:
            raise UserError(
                f"all domains must have samples of the same shape, but those of {first} are {shape} and those of {who} "
                f"{domain.sample_shape}: set the same image_size and channels, or the same number of features."
            )


def check_no_texts(data: LabelledDataModule) -> None:
    """Raises an error for texts."""
    if data.collection.of_texts:
        raise UserError(
            f"{type(data.collection).__name__} serves texts, but domain adaptation needs vectors or images: give "
            "features of the texts as Arrays."
        )


# ---- opening


def without_test(data: LabelledDataModule) -> LabelledDataModule:
    """The same data with the test samples in the training, for tests on other data."""
    twin = copy.copy(data)
    twin.with_test, twin._splits, twin.trainer = False, None, None
    return twin


def as_source(name: str, data: LabelledDataModule, splits: Mapping[str, Source], key: int) -> Domain:
    """A domain whose samples have their labels."""
    labels = {split: one.labels for split, one in splits.items()}
    return Domain(name, splits, labels, key, data.processing.changes(training=True), data.balance)


def both_splits(train: View, val: View) -> View:
    """Training and validation samples, in the order of their source if it is the same."""
    if train.base is val.base:
        return subset(train.base, np.sort(np.concatenate([train.indices, val.indices])), train.class_names)
    rows = np.concatenate([train.indices, len(train.base) + val.indices])
    return subset(joined([train.base, val.base]), rows, train.class_names)


_Found = dict[str, tuple[Source, NDArray[np.int64], NDArray[np.str_]]]


def target_splits(
    parts: Mapping[str, UnlabelledPart], encoder: Encoder | None, wanted: Mapping[str, float] | None, seed: int
) -> _Found:
    """The samples of each split of a target and the names of their classes; without fractions all in every split."""
    for part in parts.values():
        if not len(part.source):
            raise UserError(f"{part.source.name} has no samples: add some.")
    parts = {split: part._replace(source=encoded(part.source, encoder)) for split, part in parts.items()}
    return _all_at_once(parts) if wanted is None else _divided(parts, wanted, seed)


def as_target(name: str, data: LabelledDataModule, found: _Found, class_names: tuple[str, ...], key: int) -> Domain:
    """A domain whose samples are served without their labels."""
    words = np.unique(np.concatenate([one[2] for one in found.values()])).tolist()
    if named := [word for word in words if word]:
        # if only some samples have labels, some classes may be missing
        check_same_classes(named, class_names, f"target '{name}'", "the sources", whole="" not in words)
    numbers = {word: number for number, word in enumerate(class_names)} | {"": -1}
    splits = {split: View(source, rows, np.zeros_like(rows), (NO_CLASS,)) for split, (source, rows, _) in found.items()}
    labels = {split: np.array([numbers[word] for word in one[2].tolist()], np.int64) for split, one in found.items()}
    return Domain(name, splits, labels, key, data.processing.changes(training=True))


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
    taken = divided_at_random(shuffled(seed, len(base)), fractions, base.name)
    found = {split: (base, np.sort(rows), words[np.sort(rows)]) for split, rows in taken.items()}
    for split in {"val", "test"} & parts.keys():
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
    return as_source(domain.name, data, splits, domain_key(seed, 0, place))


def fitted(who: str, domains: Sequence[Domain]) -> Standardize:
    """The z-scores of the training samples of some domains."""
    found = Standardize.of(chunk for domain in domains for chunk in domain.chunks())
    if not (found.mean.isfinite().all() and found.deviation.isfinite().all()):
        raise UserError(
            f"the samples of {who} are NaN or infinite after their transform: fix them, or leave the transform out."
        )
    if found.constant:
        warnings.warn(
            f"{found.constant} of {len(found.mean)} features of {who} are constant in the training samples, and "
            "standardize sets them to 0.",
            stacklevel=2,
        )
    return found
