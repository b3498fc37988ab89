"""Labelled source domains and target domains whose labels stay out of training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_choice, check_not_negative, check_positive, check_seed
from metatransfer.data.array_data import shown
from metatransfer.data.augment import apply_transforms
from metatransfer.data.domain_checks import check_arguments, check_names, check_shares, standardize
from metatransfer.data.domain_opening import (
    check_same_classes,
    check_same_shape,
    of_domain,
    open_source,
    open_target,
    sample_shape,
    with_labels,
)
from metatransfer.data.domain_stream import Domain, DomainBatchSampler, DomainSampleSampler, Side, SideStream
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.labelled_sampler import UnlabelledLoader
from metatransfer.data.loaders import EpisodeLoader, training_position
from metatransfer.data.samplers import TaskSampler
from metatransfer.data.unlabelled import UnlabelledPart
from metatransfer.errors import UserError

Oracle = Literal["report", "select", "none"]
Standardization = Literal["none", "domain", "source"]
_ORACLES: tuple[str, ...] = get_args(Oracle)
_STANDARDIZATIONS: tuple[str, ...] = get_args(Standardization)


class DomainDataModule(LightningDataModule):
    """Serves labelled samples of source domains beside samples of target domains, whose labels are removed here.

    All domains have the same classes. Training batches are :class:`~metatransfer.batches.DomainBatch`, without any
    label of a target; validation is on the sources, then on the targets, whose labels are -1; the test is on each
    target in turn, with its labels. A target that comes undivided is divided at random sample by sample, so that its
    labels, if it has any, decide nothing. It may come without: images without folders of classes, arrays without
    labels, a table without the column of classes.

    An epoch is one pass of the larger side; the other goes on from where it is, each of its passes in a new order. Of
    several sources a batch takes equal shares. The order is a pure function of (seed, domain, pass): processes share it
    without overlap, and a run that resumes in the middle of an epoch goes on with the next batch.

    Every domain keeps its own transform, augmentation, division, seed and, among the sources, ``balance`` and
    ``labels_per_class``; its ``batch_size``, ``eval_batch_size`` and ``num_workers`` play no part::

        data:
          class_path: DomainDataModule
          init_args:
            sources:
              mnist: {class_path: ImageFolderDataModule, init_args: {root: mnist, image_size: 28}}
            targets:
              mnist_m: {class_path: ImageFolderDataModule, init_args: {root: mnist_m, image_size: 28}}

    Args:
        sources: data modules by name; letters, digits, ``_`` and ``-`` make a name. Classes are numbered as in the
            first.
        targets: likewise.
        batch_size: source samples of a training batch, in each process.
        target_batch_size: target samples of it; as many where left out.
        eval_batch_size: samples of a batch in validation, test and prediction; ``batch_size`` where left out.
        transductive: whether all samples of a target are its training, its validation and its test: the protocol of
            small data sets such as Office-Caltech10. Then a source that comes undivided keeps nothing for a test.
        hold_out_source: whether validation samples of the sources are kept from training. That protocol trains on all
            of them; what looks at the source's validation, such as a validator by weights, then sees too good numbers.
        oracle: what the labels of the targets may be used for outside of the test: ``"report"`` for metrics called
            ``oracle/...``, ``"select"`` also for the choice of the checkpoint, ``"none"`` for nothing.
        standardize: z-scores after all transforms, feature by feature (images: channel by channel), with the mean and
            the deviation of each domain's own training samples (``"domain"``) or of those of all sources
            (``"source"``); a feature that never changes becomes 0.
        seed: which division, labels and order, in place of the domains' own seeds.
        num_workers: processes that read data which is not held in memory.

    Attributes:
        source_names: in order.
        target_names: in order.
        test_sources: names of the targets where there are several, each with a test loader of its own.

    Raises:
        UserError: no source or no target, a name with other characters or in both, a batch smaller than the number of
            domains that share it, an argument that needs labels on a target, ``mix``, or an unknown word.
    """

    def __init__(
        self,
        sources: dict[str, LabelledDataModule],
        targets: dict[str, LabelledDataModule],
        batch_size: int = 64,
        target_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        transductive: bool = False,
        hold_out_source: bool = True,
        oracle: Oracle = "report",
        standardize: Standardization = "none",
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_positive(batch_size=batch_size, target_batch_size=target_batch_size, eval_batch_size=eval_batch_size)
        check_choice("oracle", oracle, _ORACLES)
        check_choice("standardize", standardize, _STANDARDIZATIONS)
        check_not_negative(num_workers=num_workers)
        if seed is not None:
            check_seed(seed=seed)
        self.sources, self.targets = dict(sources), dict(targets)
        self.batch_size, self.target_batch_size = batch_size, target_batch_size or batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.transductive, self.hold_out_source = transductive, hold_out_source
        self.oracle, self.standardize = oracle, standardize
        self.seed, self.num_workers = seed, num_workers
        check_names(self.sources, self.targets)
        check_arguments(self.sources, self.targets)
        check_shares(batch_size=(self.batch_size, self.sources), target_batch_size=(self.target_batch_size, targets))
        self._parts: dict[str, Mapping[str, UnlabelledPart]] = {}  # shared with copies under other seeds
        self._oracle_of: DomainDataModule | None = None
        self._told = False
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[str, LabelledDataModule] = {}
        self._source_side: Side | None = None
        self._target_side: Side | None = None
        self._checked = False
        self.trainer = None

    # ---- domains

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(self.sources)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(self.targets)

    @property
    def test_sources(self) -> tuple[str, ...]:
        """Names of the targets where there are several: what tests on several loaders call them."""
        return self.target_names if len(self.targets) > 1 else ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels: that of the first source."""
        if self._oracle_of is not None:
            return self._oracle_of.class_names
        first = self.source_names[0]
        with of_domain(f"source '{first}'"):
            return self._source(first).class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """``(C,)`` training samples of each class in all sources."""
        counts: NDArray[np.int64] = np.bincount(self._side("sources").labels("train"), minlength=self.num_classes)
        return counts

    @property
    def num_source_samples(self) -> int:
        """Training samples of all sources."""
        return self._side("sources").size("train")

    @property
    def num_target_samples(self) -> int:
        """Training samples of all targets."""
        return self._side("targets").size("train")

    @property
    def skipped(self) -> dict[str, int]:
        """Samples left out, by domain and part."""
        given = {**self.sources, **self.targets, **self._opened}
        return {
            f"{name} {part}": count
            for name, data in given.items()
            for part, count in getattr(data, "skipped", {}).items()
        }

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample after the transform, for networks that are to be built for it."""
        return sample_shape(self._side("sources").domains[0])

    def _source(self, name: str) -> LabelledDataModule:
        """A source's data under the seed and the protocol that hold."""
        if name not in self._opened:
            data = self.sources[name]
            data = data if self.seed is None else data.reseeded(self.seed)
            self._opened[name] = data.without_test() if self.transductive else data
        return self._opened[name]

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
            return [with_labels(one, names, place, self._target_seed(one.name)) for place, one in targets]
        found = []
        for place, name in enumerate(self.sources):
            with of_domain(f"source '{name}'"):
                own = self._source(name).class_names
            check_same_classes(own, names, f"source '{name}'", f"source '{self.source_names[0]}'")
            found.append(open_source(name, self._source(name), names, place, hold_out=self.hold_out_source))
        return found

    def _open_targets(self) -> list[Domain]:
        found = []
        for place, (name, data) in enumerate(self.targets.items()):
            if name not in self._parts:
                with of_domain(f"target '{name}'"):
                    self._parts[name] = data.unlabelled_parts()
            found.append(
                open_target(
                    name, data, self._parts[name], self.class_names, place,
                    seed=self._target_seed(name), transductive=self.transductive,
                )
            )  # fmt: skip
        return found

    def _target_seed(self, name: str) -> int:
        return self.targets[name].seed if self.seed is None else self.seed

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

    # ---- what a run asks for

    def prepare_data(self) -> None:
        """Lets every domain download what it may."""
        for data in (*self.sources.values(), *self.targets.values()):
            data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens all domains, and says once which targets bring labels.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None``.

        Raises:
            UserError: domains that do not fit each other, or a test on a target without labels.
        """
        _, targets = self._ready()
        if stage == "test":
            self._check_labelled()
        labelled = [f"'{one.name}'" for one in targets.domains if any((y >= 0).any() for y in one.labels.values())]
        if stage == "fit" and labelled and not self._told and self._oracle_of is None:
            use = {
                "report": "they serve the test and the metrics called oracle/... alone",
                "none": "they serve the test alone",
                "select": "but oracle=select lets the metrics called oracle/... choose the checkpoint by them",
            }[self.oracle]
            rank_zero_info(f"The labels of {', '.join(labelled)} are removed from training and validation: {use}.")
            self._told = True

    def train_dataloader(self) -> EpisodeLoader:
        """Batches of sources and targets; an epoch is one pass of the larger side, and one batch at least."""
        sources, targets = self._ready()
        world = self.trainer.world_size if self.trainer else 1
        steps = max(
            1,
            sources.size("train") // (self.batch_size * world),
            targets.size("train") // (self.target_batch_size * world),
        )
        streams = SideStream(sources, self.batch_size), SideStream(targets, self.target_batch_size)
        return self._loader(DomainBatchSampler(*streams), steps * world, 1, training=True)

    def val_dataloader(self) -> list[EpisodeLoader]:
        """The validation samples of the sources, then those of the targets, whose labels are -1."""
        sources, targets = self._ready()
        return [self._samples(sources, "val", shown=True), self._samples(targets, "val", shown=False)]

    def test_dataloader(self) -> list[EpisodeLoader]:
        """The test samples of each target, with their labels."""
        _, targets = self._ready()
        self._check_labelled()
        return [self._samples(targets, "test", shown=True, only=place) for place in range(len(targets.domains))]

    def source_samples(self) -> EpisodeLoader:
        """The training samples of the sources once, in the order of their numbers and without augmentation."""
        return self._samples(self._ready()[0], "train", shown=True)

    def target_samples(self, *, shuffled: bool = False) -> EpisodeLoader:
        """The training samples of the targets likewise; their labels are -1.

        Args:
            shuffled: whether in an order, always the same, that says nothing: files may be sorted by class.

        Returns:
            The loader.
        """
        return self._samples(self._ready()[1], "train", shown=False, shuffled=shuffled)

    def predict_dataloader(self) -> UnlabelledLoader:
        """What the first target's ``predict`` gives to label, in batches."""
        target = self._ready()[1].domains[0]
        with of_domain(f"target '{target.name}'"):
            source, names = target.data.unlabelled()
        transforms = [*target.data.transform, *([target.standardize] if target.standardize is not None else [])]
        return UnlabelledLoader(source, names, self.eval_batch_size, partial(apply_transforms, transforms))

    def _samples(
        self, side: Side, split: str, *, shown: bool, only: int | None = None, shuffled: bool = False
    ) -> EpisodeLoader:
        sampler = DomainSampleSampler(side, split, shown=shown, only=only, shuffled=shuffled)
        return self._loader(sampler, len(sampler), self.eval_batch_size, training=False)

    def _loader(self, sampler: TaskSampler, count: int, size: int, *, training: bool) -> EpisodeLoader:
        trainer = self.trainer
        sides = self._ready()
        # worker processes read what lies beside it in memory as well, which they could not on an accelerator
        beside = self.num_workers > 0 and not all(one.in_memory for side in sides for one in side.domains)
        on_cpu = trainer is None or (beside and sampler.in_memory)
        return EpisodeLoader(
            sampler,
            episodes=count,
            tasks_per_batch=size,
            drop_last=training,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            position=partial(training_position, trainer) if training else lambda: (0, 0),
            device=lambda: torch.device("cpu") if on_cpu or not trainer else trainer.strategy.root_device,
            num_workers=self.num_workers,
        )

    def _check_labelled(self) -> None:
        """Refuses a test that has nothing to compare answers with.

        Raises:
            UserError: a target without a test split, or without the labels of one.
        """
        for one in self._side("targets").domains:
            if "test" not in one.splits:
                raise UserError(
                    f"target '{one.name}' has no test split: it comes divided into {', '.join(one.splits)}; add one, "
                    "or set transductive to test on all of its samples."
                )
            unknown = int((one.labels["test"] < 0).sum())
            if unknown:
                raise UserError(
                    f"target '{one.name}' has {unknown} test samples without labels, so that no answer can be scored: "
                    "give their labels, or have them labelled by predict."
                )

    # ---- labels of the targets, which are asked for by name

    def oracle_labels(self, split: str) -> Tensor | None:
        """The labels of the targets, for metrics called ``oracle/...``.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            ``(N,)`` int64 in the order of the samples' ``number``, -1 where a label is not known; ``None`` where none
            is, or ``oracle`` is ``"none"``.
        """
        labels = self._side("targets").labels(split)
        if self.oracle == "none" or not (labels >= 0).any():
            return None
        return torch.from_numpy(labels.copy())

    def oracle_twin(self) -> DomainDataModule:
        """The targets with their training labels as sources: what could be had if one knew them.

        Returns:
            A data module with the same targets and the same classes in the same order.

        Raises:
            UserError: ``oracle`` is ``"none"``, or a target has training samples without labels.
        """
        if self.oracle == "none":
            raise UserError(
                "oracle is 'none', so that the labels of the targets may not be trained on: set it to 'report'."
            )
        twin = copy.copy(self)
        twin.sources, twin._oracle_of = dict(self.targets), self
        twin._forget()
        twin._side("sources")
        return twin

    def reseeded(self, seed: int) -> Self:
        """The same domains under another seed: other divisions, other labels, another order.

        Args:
            seed: which.

        Returns:
            A copy that shares the samples.
        """
        check_seed(seed=seed)
        twin = copy.copy(self)
        twin.seed = seed
        twin._oracle_of = self._oracle_of.reseeded(seed) if self._oracle_of is not None else None
        twin._forget()
        return twin

    # ---- for people

    def show(self, split: str, number: int) -> str | Tensor:
        """A sample of a target as a person looks at it.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            number: among the samples of all targets.

        Returns:
            A picture ``(C, H, W)`` in [0, 1], or a sentence.
        """
        domain, own = self._side("targets").place(split, number)
        sample = domain.splits[split].read(np.array([own]), torch.device("cpu"))[0]
        assert isinstance(sample, Tensor)
        return shown(sample)

    def info(self) -> Any:  # noqa: ANN401
        """TEMPORARY."""
        from metatransfer.batches import DomainBatch
        from metatransfer.data_info import DataInfo

        return DataInfo(
            DomainBatch, self.sample_shape(), class_names=self.class_names,
            class_counts=tuple(self.class_counts.tolist()), test_names=self.test_sources,
            target_names=self.target_names, oracle=self.oracle, skipped=self.skipped,
        )  # fmt: skip

    def protocol(self) -> dict[str, Any]:
        """Domains, their sizes and divisions, and what the labels of the targets may be used for."""
        sources, targets = self._ready()
        return {
            "data": type(self).__name__,
            "protocol": "transductive" if self.transductive else "inductive",
            "oracle": self.oracle,
            "source_validation": "held out" if self.hold_out_source else "trained on, too",
            "trained_on": "labels of the targets" if self._oracle_of is not None else "labels of the sources",
            "standardize": self.standardize,
            "classes": self.num_classes,
            "sources": {one.name: {"val": len(one.splits["val"])} for one in sources.domains},
            "targets": {one.name: self._target_card(one) for one in targets.domains},
            "train_batches": {
                "batch_size": self.batch_size,
                "target_batch_size": self.target_batch_size,
                "sources": {one.name: self._training_card(one, one.name in self._opened) for one in sources.domains},
                "targets": {one.name: self._training_card(one, False) for one in targets.domains},
            },
        }

    def _target_card(self, target: Domain) -> dict[str, Any]:
        parts = self._parts[target.name]
        seed = self._target_seed(target.name)
        how = "as given" if len(parts) == len(target.splits) else f"by sample at random, seed {seed}"
        known = {split: int((labels >= 0).sum()) for split, labels in target.labels.items()}
        return {
            "split": "all samples in every split" if self.transductive else how,
            "samples": {split: len(one) for split, one in target.splits.items() if split != "train"},
            "labels_known": known,
            "transform": [repr(one) for one in target.data.transform],
        }

    def _training_card(self, domain: Domain, own: bool) -> dict[str, Any]:
        """What a domain is trained on; ``own`` where its labels, too, are divided by its data module."""
        data = domain.data
        return {
            "data": type(data).__name__,
            **({"split": data.protocol().get("split")} if own else {}),
            "samples": len(domain.splits["train"]),
            "labels_per_class": data.labels_per_class,
            "balance": data.balance,
            "seed": data.seed if own else self._target_seed(domain.name),
            "augmentation": repr(data.augmentation) if data.augmentation is not None else None,
            "transform": [repr(one) for one in data.transform],
        }
