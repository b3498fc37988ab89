"""Opens the domains of a data module on first use, with the same class numbers and the same standardisation."""

import copy
from collections.abc import Mapping
from typing import Literal, Self

from lightning.pytorch import LightningDataModule

from metatransfer.checks import check_seed
from metatransfer.data.sampling.domains import Domain, Side, domain_key
from metatransfer.data.serving.domain_opening import (
    as_source,
    as_target,
    both_splits,
    check_no_texts,
    check_same_classes,
    check_same_shape,
    fitted,
    of_domain,
    target_splits,
    with_labels,
    without_test,
)
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.settings import DomainDivision
from metatransfer.data.sources import Encoder, UnlabelledPart, encoded, subset
from metatransfer.errors import UserError


class OpenedDomains(LightningDataModule):
    """Opens the source and target domains of :class:`DomainDataModule`, which documents and sets the arguments."""

    sources: Mapping[str, LabelledDataModule]
    targets: Mapping[str, LabelledDataModule]
    division: DomainDivision
    standardize: str
    seed: int | None

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, Mapping[str, UnlabelledPart]] = {}  # shared with copies under other seeds
        self._oracle_of: OpenedDomains | None = None

    def _forget(self) -> None:
        self._opened = {name: self._own(data) for name, data in self.sources.items()}
        self._sides: dict[str, Side] = {}
        self._checked = False
        self.trainer = None

    def _own(self, source: LabelledDataModule) -> LabelledDataModule:
        """A source's data, with the seed and the division of this data module."""
        data = source if self.seed is None else source.reseeded(self.seed)
        return without_test(data) if self.division.transductive else data

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels: that of the first source."""
        if self._oracle_of is not None:
            return self._oracle_of.class_names
        return self._classes_of(next(iter(self.sources)))

    def _classes_of(self, source: str) -> tuple[str, ...]:
        with of_domain(f"source '{source}'"):
            check_no_texts(self.sources[source])
            return self._opened[source].splits.part("train").class_names

    @property
    def _encoder(self) -> Encoder | None:
        """The encoder of the first source, used for all tables so that their features mean the same."""
        if self._oracle_of is not None:
            return self._oracle_of._encoder
        return next(iter(self._opened.values())).encoder

    def _side(self, which: Literal["sources", "targets"]) -> Side:
        """The sources, or the targets; opened on first use."""
        if which not in self._sides:
            self._sides[which] = Side(self._open_sources() if which == "sources" else self._open_targets())
        return self._sides[which]

    def _open_sources(self) -> list[Domain]:
        names = self.class_names
        if self._oracle_of is not None:
            return [
                with_labels(one, self.targets[one.name], names, place, self._target_seed(one.name))
                for place, one in enumerate(self._side("targets").domains)
            ]
        first, found = next(iter(self.sources)), []
        for place, (name, data) in enumerate(self._opened.items()):
            check_same_classes(self._classes_of(name), names, f"source '{name}'", f"source '{first}'")
            train, val = (encoded(data.splits.part(split), self._encoder) for split in ("train", "val"))
            given = {"train": train if self.division.hold_out_source else both_splits(train, val), "val": val}
            splits = {split: subset(one.base, one.indices, names) for split, one in given.items()}
            found.append(as_source(name, data, splits, domain_key(data.seed, 0, place)))
        return found

    def _open_targets(self) -> list[Domain]:
        names, encoder, found = self.class_names, self._encoder, []
        for place, (name, data) in enumerate(self.targets.items()):
            seed = self._target_seed(name)
            with of_domain(f"target '{name}'"):
                if name not in self._parts:
                    check_no_texts(data)
                    self._parts[name] = data.collection.unlabelled_parts()
                wanted = None if self.division.transductive else data.division.fractions(0.1)
                splits = target_splits(self._parts[name], encoder, wanted, seed)
            found.append(as_target(name, data, splits, names, domain_key(seed, 1, place)))
        return found

    def _target_seed(self, name: str) -> int:
        """The seed of a target's division and order."""
        own = self.targets[name]
        given = own.seed if own.division.seed is None else own.division.seed
        return given if self.seed is None else self.seed

    def _ready(self) -> tuple[Side, Side]:
        """Both sides, checked and standardised once."""
        sources, targets = self._side("sources"), self._side("targets")
        if not self._checked:
            named = [(f"source '{one.name}'", one) for one in sources.domains]
            named += [(f"target '{one.name}'", one) for one in targets.domains]
            check_same_shape(named)
            if self.standardize != "none":
                self._standardize(named)
            self._checked = True
        return sources, targets

    def _standardize(self, named: list[tuple[str, Domain]]) -> None:
        """Fits the z-scores; an oracle uses those of the original run."""
        if self._oracle_of is not None:
            of_run = {one.name: one.standardize for one in self._oracle_of._ready()[1].domains}
            for _, domain in named:
                domain.standardize = of_run[domain.name]
            return
        shared = fitted("the sources", self._side("sources").domains) if self.standardize == "source" else None
        for who, domain in named:
            domain.standardize = shared or fitted(who, [domain])

    def _check_labelled(self) -> None:
        """Raises an error if the test samples have no labels."""
        for one in self._side("targets").domains:
            if "test" not in one.splits:
                raise UserError(
                    f"target '{one.name}' has no test split, only {', '.join(one.splits)}: add one, or set "
                    "division.transductive to test on all of its samples."
                )
            unknown = int((one.labels["test"] < 0).sum())
            if unknown:
                raise UserError(
                    f"target '{one.name}' has {unknown} test samples without labels, which cannot be scored: give "
                    "their labels, or use predict."
                )

    def prepare_data(self) -> None:
        """Lets every domain download its data."""
        for data in (*self.sources.values(), *self.targets.values()):
            data.prepare_data()

    def reseeded(self, seed: int) -> Self:
        """A copy with another seed for divisions, labels and order."""
        check_seed(seed=seed)
        return self._twin(seed=seed, _oracle_of=self._oracle_of and self._oracle_of.reseeded(seed))

    def _twin(self, **changes: object) -> Self:
        twin = copy.copy(self)
        vars(twin).update(changes)
        twin._forget()
        return twin
