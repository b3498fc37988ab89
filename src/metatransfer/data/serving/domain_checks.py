"""Requirements on a set of domains; errors name the domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.domains import Domain
from metatransfer.data.serving.base import check_name
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.sources import Source, first_not_finite
from metatransfer.errors import UserError


@contextlib.contextmanager
def of_domain(who: str) -> Iterator[None]:
    """Prefixes errors raised inside with the name of the domain: ``"source 'amazon'"``.

    Yields:
        Nothing.

    Raises:
        UserError: any that is raised inside.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{who}: {error}") from error


def check_names(sources: Mapping[str, object], targets: Mapping[str, object]) -> None:
    """Raises an error for domains that cannot be told apart by name.

    Raises:
        UserError: no domain, an invalid name, or one name on both sides.
    """
    for side, given in (("source", sources), ("target", targets)):
        if not given:
            raise UserError(f"{side}s has no domain: give at least one, <name>: <collection or path>.")
        for name in given:
            check_name(side, str(name))
    if both := [name for name in sources if name in targets]:
        raise UserError(
            f"'{both[0]}' is a source and a target at once, so that its labels would be trained on: give it as one of "
            "the two."
        )


def check_arguments(sources: Mapping[str, LabelledDataModule], targets: Mapping[str, LabelledDataModule]) -> None:
    """Raises an error for options that domain adaptation cannot use.

    Raises:
        UserError: ``mix``, or ``labels_per_class`` or ``balance`` on a target.
    """
    for name, data in sources.items():
        if data.processing.mix is not None:
            raise UserError(
                f"source '{name}' has processing.mix, but domain adaptation needs class labels: leave it out."
            )
    for name, data in targets.items():
        needs_labels = {
            "labels_per_class": data.labels_per_class is not None,
            "processing.mix": data.processing.mix is not None,
            "balance": data.balance != "none",
        }
        if used := [argument for argument, given in needs_labels.items() if given]:
            raise UserError(
                f"target '{name}' has {used[0]}, which needs labels, but a target is unlabelled: leave it out."
            )


def check_shares(**sizes: tuple[int, Mapping[str, object]]) -> None:
    """Raises an error for batches that are too small for samples of every domain.

    Raises:
        UserError: fewer samples than domains.
    """
    for argument, (size, domains) in sizes.items():
        if size < len(domains):
            raise UserError(
                f"{argument} must be {len(domains)} or more for a batch to have samples of {', '.join(domains)}, but "
                f"is {size}."
            )


def check_same_classes(
    names: Sequence[str], known: Sequence[str], who: str, others: str, *, whole: bool = True
) -> None:
    """Raises an error if a domain has other classes than the others; unless ``whole``, it may lack some.

    Raises:
        UserError: with the first class that only one of them has.
    """
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
    """Raises an error if samples of domains differ in shape.

    Raises:
        UserError: two shapes.
    """
    shapes = [domain.sample_shape for _, domain in domains]
    for (who, _), shape in zip(domains, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"all domains must have samples of the same shape, but those of {domains[0][0]} are {shapes[0]} and "
                f"those of {who} {shape}: set the same image_size and channels, or the same number of features."
            )


def check_no_texts(data: LabelledDataModule) -> None:
    """Raises an error for texts.

    Raises:
        UserError: the samples are texts.
    """
    if data.collection.of_texts:
        raise UserError(
            f"{type(data.collection).__name__} serves texts, but domain adaptation needs vectors or images: give "
            "features of the texts as Arrays."
        )


def check_finite(sources: Sequence[Source]) -> None:
    """Raises an error for samples that contain NaN or infinity.

    Raises:
        UserError: with the first of them.
    """
    for source in {id(one): one for one in sources}.values():
        bad = first_not_finite(source)
        if bad is not None:
            raise UserError(f"sample {bad} of {source.name} contains NaN or infinity: fix or remove it.")
