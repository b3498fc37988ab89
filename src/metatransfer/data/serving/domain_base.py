"""The domains behind a data module: opened when first asked for, numbered alike, standardised together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, Self

from lightning.pytorch import LightningDataModule

from metatransfer.checks import check_seed
from metatransfer.data.sampling.domains import Domain, Side
from metatransfer.data.serving.domain_checks import standardize
from metatransfer.data.serving.domain_opening import (
    check_no_texts,
    check_same_classes,
    check_same_shape,
    of_domain,
    open_source,
    open_target,
    with_labels,
    without_test,
)
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.settings import DomainDivision
from metatransfer.data.sources import Encoder, UnlabelledPart
from metatransfer.errors import UserError


class OpenedDomains(LightningDataModule):
    """Opens source and target domains; what :class:`DomainDataModule` serves.

    Args:
        sources: domains by name.
        targets: domains by name.
        division: which samples are trained, validated and tested on.
        standardize: ``"none"``, ``"domain"`` or ``"source"``.
        seed: in place of the domains' own seeds.
    """

    def __init__(
        self,
        sources: Mapping[str, LabelledDataModule],
        targets: Mapping[str, LabelledDataModule],
        division: DomainDivision,
        standardize: str,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.sources, self.targets = dict(sources), dict(targets)
        self.division, self.standardize, self.seed = division, standardize, seed
        self._parts: dict[str, Mapping[str, UnlabelledPart]] = {}  # shared with copies under other seeds
        self._oracle_of: OpenedDomains | None = None
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[str, LabelledDataModule] = {}
        self._source_side: Side | None = None
        self._target_side: Side | None = None
        self._checked = False
        self.trainer = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels: that of the first source."""
        if self._oracle_of is not None:
            return self._oracle_of.class_names
        first = next(iter(self.sources))
        with of_domain(f"source '{first}'"):
            check_no_texts(self.sources[first])
            return self._source(first).splits.view("train").class_names

    def _source(self, name: str) -> LabelledDataModule:
        """A source's data under the seed and the protocol that hold."""
        if name not in self._opened:
            data = self.sources[name]
            data = data if self.seed is None else data.reseeded(self.seed)
            self._opened[name] = without_test(data) if self.division.transductive else data
        return self._opened[name]

    @property
    def _encoder(self) -> Encoder | None:
        """The rows of all tables are read as those of the first source, so that features mean the same."""
        if self._oracle_of is not None:
            return self._oracle_of._encoder
        return self._source(next(iter(self.sources))).encoder

    def _side(self, which: Literal["sources", "targets"]) -> Side:
        """The sources, or the targets; opened when first asked for."""
        if which == "sources":
            self._source_side = self._source_side or Side(self._open_sources())
            return self._source_side
        self._target_side = self._target_side or Side(self._open_targets())
        return self._target_side

    def _open_sources(self) -> list[Domain]:
        names = self.class_names
        if self._oracle_of is not None:
            targets = enumerate(self._side("targets").domains)
            return [
                with_labels(one, self.targets[one.name], names, place, self._target_seed(one.name))
                for place, one in targets
            ]
        found = []
        for place, name in enumerate(self.sources):
            with of_domain(f"source '{name}'"):
                check_no_texts(self.sources[name])
                own = self._source(name).splits.view("train").class_names
            check_same_classes(own, names, f"source '{name}'", f"source '{next(iter(self.sources))}'")
            hold_out = self.division.hold_out_source
            found.append(open_source(name, self._source(name), names, place, self._encoder, hold_out=hold_out))
        return found

    def _open_targets(self) -> list[Domain]:
        found = []
        for place, (name, data) in enumerate(self.targets.items()):
            if name not in self._parts:
                with of_domain(f"target '{name}'"):
                    check_no_texts(data)
                    self._parts[name] = data.collection.unlabelled_parts()
            found.append(
                open_target(
                    name, data, self._parts[name], self.class_names, place, self._encoder,
                    seed=self._target_seed(name), transductive=self.division.transductive,
                )
            )  # fmt: skip
        return found

    def _target_seed(self, name: str) -> int:
        """The seed of a target's division and order."""
        own = self.targets[name]
        given = own.seed if own.division.seed is None else own.division.seed
        return given if self.seed is None else self.seed

    def _ready(self) -> tuple[Side, Side]:
        """Both sides, looked at together and standardised once."""
        sources, targets = self._side("sources"), self._side("targets")
        if not self._checked:
            named = [(f"source '{one.name}'", one) for one in sources.domains]
            named += [(f"target '{one.name}'", one) for one in targets.domains]
            check_same_shape(named)
            self._standardize(sources, targets)
            self._checked = True
        return sources, targets

    def _standardize(self, sources: Side, targets: Side) -> None:
        """Fits the z-scores; those that the labels of the targets are tried with are those of the run."""
        if self._oracle_of is None:
            standardize(sources.domains, targets.domains, self.standardize)
            return
        fitted = {one.name: one.standardize for one in self._oracle_of._ready()[1].domains}
        for one in (*sources.domains, *targets.domains):
            one.standardize = fitted[one.name]

    def _check_labelled(self) -> None:
        """Raises an error where a test has no labels to compare answers with.

        Raises:
            UserError: a target without a test split, or without the labels of one.
        """
        for one in self._side("targets").domains:
            if "test" not in one.splits:
                raise UserError(
                    f"target '{one.name}' has no test split: it comes divided into {', '.join(one.splits)}; add one, "
                    "or set division.transductive to test on all of its samples."
                )
            unknown = int((one.labels["test"] < 0).sum())
            if unknown:
                raise UserError(
                    f"target '{one.name}' has {unknown} test samples without labels, so that no answer can be scored: "
                    "give their labels, or have them labelled by predict."
                )

    def prepare_data(self) -> None:
        """Lets every domain download what it may."""
        for data in (*self.sources.values(), *self.targets.values()):
            data.prepare_data()

    def reseeded(self, seed: int) -> Self:
        """The same domains under another seed: other divisions, other labels, another order."""
        check_seed(seed=seed)
        twin = copy.copy(self)
        twin.seed = seed
        twin._oracle_of = self._oracle_of.reseeded(seed) if self._oracle_of is not None else None
        twin._forget()
        return twin
