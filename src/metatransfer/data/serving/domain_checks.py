"""What a set of domains must be, and the statistics that bring their features to one scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from metatransfer.data.sampling.domains import Domain
from metatransfer.data.sampling.feature_transforms import Standardize
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.errors import UserError


def standardize(sources: Sequence[Domain], targets: Sequence[Domain], how: str) -> None:
    """Fits the z-scores of every domain.

    Raises:
        UserError: a transform that gives NaN or infinity.
    """
    if how == "none":
        return
    named = [(f"source '{one.name}'", one) for one in sources] + [(f"target '{one.name}'", one) for one in targets]
    if how == "source":
        fitted = _fitted("the sources", sources)
        for _, domain in named:
            domain.standardize = fitted
        return
    for who, domain in named:
        domain.standardize = _fitted(who, [domain])


def _fitted(who: str, domains: Sequence[Domain]) -> Standardize:
    """The z-scores of some domains' training samples.

    Raises:
        UserError: they hold NaN or infinity.
    """

    def chunks() -> Iterator[Tensor]:
        for domain in domains:
            yield from domain.chunks()

    fitted = Standardize.of(chunks())
    if not (fitted.mean.isfinite().all() and fitted.deviation.isfinite().all()):
        raise UserError(
            f"the samples of {who} are NaN or infinite after their transform: fix them, or leave the transform out."
        )
    if fitted.constant:
        warnings.warn(
            f"{fitted.constant} of {len(fitted.mean)} features of {who} never change in training and become 0 by "
            "standardize.",
            stacklevel=2,
        )
    return fitted


def check_names(sources: Mapping[str, object], targets: Mapping[str, object]) -> None:
    """Raises an error for names that cannot be part of a metric's name.

    Raises:
        UserError: no domain, another character in a name, or one name on both sides.
    """
    for side, given in (("source", sources), ("target", targets)):
        if not given:
            raise UserError(f"{side}s names no domain: give at least one, <name>: <collection or path>.")
        for name in given:
            if not str(name).replace("_", "a").replace("-", "a").isalnum():
                raise UserError(f"the {side} '{name}' must be named by letters, digits, '_' and '-' alone.")
    both = [name for name in sources if name in targets]
    if both:
        raise UserError(
            f"'{both[0]}' is a source and a target at once, so that its labels would be trained on: name it in one of "
            "the two."
        )


def check_arguments(sources: Mapping[str, LabelledDataModule], targets: Mapping[str, LabelledDataModule]) -> None:
    """Raises an error for settings that need labels that are not there.

    Raises:
        UserError: ``mix``, or ``labels_per_class`` or ``balance`` on a target.
    """
    for name, data in sources.items():
        if data.processing.mix is not None:
            raise UserError(
                f"source '{name}' has processing.mix, but domain adaptation learns from whole labels: leave it out."
            )
    for name, data in targets.items():
        given: dict[str, object | None] = {
            "labels_per_class": data.labels_per_class,
            "processing.mix": data.processing.mix,
        }
        given |= {"balance": data.balance if data.balance != "none" else None}
        used = [argument for argument, value in given.items() if value is not None]
        if used:
            raise UserError(
                f"target '{name}' has {used[0]}, which needs labels, but those of a target are not to be used: leave "
                "it out."
            )


def check_shares(**sizes: tuple[int, Mapping[str, object]]) -> None:
    """Raises an error for batches that leave a domain out.

    Raises:
        UserError: fewer samples than domains.
    """
    for argument, (size, domains) in sizes.items():
        if size < len(domains):
            raise UserError(
                f"{argument} must be {len(domains)} or more for a batch to have samples of {', '.join(domains)}, but "
                f"is {size}."
            )
