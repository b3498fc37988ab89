"""Labelled source domains and target domains whose labels stay out of training."""

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from metatransfer.batches import DomainBatch, DomainSamples, UnlabelledBatch
from metatransfer.checks import check_choice, check_count, check_seed
from metatransfer.data.sampling.domains import Domain, DomainBatchSampler, DomainSampleSampler, Side, SideStream
from metatransfer.data.sampling.labelled import UnlabelledSampler
from metatransfer.data.sampling.loader import BatchLoader, Place
from metatransfer.data.serving.domain_base import OpenedDomains
from metatransfer.data.serving.domain_opening import check_side, of_domain
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.settings import DomainDivision
from metatransfer.data.sources import Collection, encoded
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError
from metatransfer.module_keys import shown

Oracle = Literal["report", "select", "none"]
Standardization = Literal["none", "domain", "source"]


class DomainDataModule(OpenedDomains):
    """Serves labelled samples of source domains and unlabelled samples of target domains.

    All domains have the same classes. Training batches are :class:`~metatransfer.batches.DomainBatch`, without target
    labels; validation uses the sources, then the targets with labels of -1; the test uses each target in turn, with its
    labels. An undivided target is divided at random sample by sample, independently of its labels. A target may have no
    labels at all: images without class folders, arrays without labels, a table without the class column.

    An epoch is one pass over the larger side; the smaller side is passed over repeatedly, each time in a new order.
    Several domains of a side have equal shares of a batch. The order is a pure function of (seed, domain, pass):
    processes share it without overlap, and a run that resumes in the middle of an epoch continues with the next batch.

    A domain is a collection, a path, or a :class:`LabelledDataModule` with its own processing, division, seed and, for
    sources, ``balance`` and ``labels_per_class``; its batch sizes and ``num_workers`` are ignored::

        data:
          class_path: DomainDataModule
          init_args:
            sources: {typeset: TypesetDigits}
            targets:
              handwritten:
                class_path: LabelledDataModule
                init_args: {source: Digits, division: {test_fraction: 0.3}}

    Args:
        sources: domains by name; names consist of letters, digits, ``_`` and ``-``. Classes are numbered as in the
            first.
        targets: domains by name.
        batch_size: source samples of a training batch, in each process.
        target_batch_size: target samples of a training batch; defaults to ``batch_size``.
        eval_batch_size: batch size of validation, test and prediction; defaults to ``batch_size``.
        division: how the domains are divided into splits.
        oracle: permitted use of target labels outside the test: ``"report"`` for metrics named ``oracle/...``,
            ``"select"`` also to select the checkpoint, ``"none"`` for no use.
        standardize: z-scores after all transforms, per feature (images: per channel), with the mean and standard
            deviation of each domain's own training samples (``"domain"``) or of those of all sources (``"source"``); a
            constant feature becomes 0.
        seed: seed of divisions, labels and order; replaces the seeds of the domains.
        num_workers: number of worker processes for data that is not held in memory.

    Raises:
        UserError: no source or no target, a name that is invalid or on both sides, a batch smaller than its number of
            domains, an option that needs labels on a target, ``mix``, or an unknown value.
    """

    def __init__(
        self,
        sources: dict[str, LabelledDataModule | Collection | str],
        targets: dict[str, LabelledDataModule | Collection | str],
        batch_size: int = 64,
        target_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        division: DomainDivision = DomainDivision(),
        oracle: Oracle = "report",
        standardize: Standardization = "none",
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        check_count(batch_size=batch_size, target_batch_size=target_batch_size, eval_batch_size=eval_batch_size)
        check_choice("oracle", oracle, get_args(Oracle))
        check_choice("standardize", standardize, get_args(Standardization))
        check_count(0, 1000, num_workers=num_workers)
        check_seed(seed=seed)
        if both := [name for name in sources if name in targets]:
            raise UserError(
                f"'{both[0]}' is both a source and a target, so its labels would be used for training: give it as one "
                "of the two."
            )
        paths = {os.path.realpath(one): name for name, one in sources.items() if isinstance(one, str)}
        for name, one in targets.items():
            if isinstance(one, str) and (other := paths.get(os.path.realpath(one))):
                raise UserError(
                    f"target '{name}' has the same path as source '{other}', so its labels would be used for "
                    f"training: give another path than '{one}'."
                )
        super().__init__()
        self.sources, self.targets = _domains("source", sources), _domains("target", targets)
        self.division, self.standardize, self.seed = division, standardize, seed
        self.batch_size, self.target_batch_size = batch_size, target_batch_size or batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.oracle, self.num_workers = oracle, num_workers
        check_side("source", self.sources, "batch_size", self.batch_size)
        check_side("target", self.targets, "target_batch_size", self.target_batch_size)
        self._logged = False
        self._forget()

    def info(self) -> DataInfo:
        """The description of the data."""
        sources = self._side("sources")
        given = {**self.sources, **self.targets}
        return DataInfo(
            batch=DomainBatch,
            sample_shape=sources.domains[0].sample_shape,
            class_names=self.class_names,
            class_counts=tuple(np.bincount(sources.labels("train"), minlength=len(self.class_names)).tolist()),
            test_names=tuple(self.targets) if len(self.targets) > 1 else (),
            target_names=tuple(self.targets),
            oracle=self.oracle,
            skipped={
                f"{name} {part}": count for name, one in given.items() for part, count in one.collection.skipped.items()
            },
        )

    def setup(self, stage: str | None = None) -> None:
        """Opens all domains and logs once which targets have labels.

        Raises:
            UserError: domains that do not fit each other, or a test on a target without labels.
        """
        _, targets = self._ready()
        if stage == "test":
            self._check_labelled()
        labelled = [f"'{one.name}'" for one in targets.domains if any((y >= 0).any() for y in one.labels.values())]
        if stage == "fit" and labelled and not self._logged and self._oracle_of is None:
            use = {
                "report": "they are used for the test and the metrics named oracle/... only",
                "none": "they are used for the test only",
                "select": "but with oracle=select the metrics named oracle/... select the checkpoint",
            }[self.oracle]
            rank_zero_info(f"The labels of {', '.join(labelled)} are removed from training and validation: {use}.")
            self._logged = True

    def train_dataloader(self) -> BatchLoader[DomainBatch]:
        """Batches of sources and targets; an epoch is one pass over the larger side, at least one batch."""
        sources, targets = self._ready()
        world = self.trainer.world_size if self.trainer else 1
        steps = max(
            1,
            len(sources.labels("train")) // (self.batch_size * world),
            len(targets.labels("train")) // (self.target_batch_size * world),
        )
        sampler = DomainBatchSampler(SideStream(sources, self.batch_size), SideStream(targets, self.target_batch_size))
        place = self._place(sampler.in_memory, training=True)
        return BatchLoader(sampler, steps * world, 1, drop_last=True, place=place, num_workers=self.num_workers)

    def val_dataloader(self) -> list[BatchLoader[DomainSamples]]:
        """The validation samples of the sources, then those of the targets, whose labels are -1."""
        sources, targets = self._ready()
        return [self._samples(sources, "val", shown=True), self._samples(targets, "val", shown=False)]

    def test_dataloader(self) -> list[BatchLoader[DomainSamples]]:
        """The test samples of each target, with their labels."""
        _, targets = self._ready()
        self._check_labelled()
        return [self._samples(targets, "test", shown=True, only=place) for place in range(len(targets.domains))]

    def source_samples(self) -> BatchLoader[DomainSamples]:
        """The training samples of the sources once, in order and without augmentation."""
        return self._samples(self._ready()[0], "train", shown=True)

    def target_samples(self, *, shuffled: bool = False) -> BatchLoader[DomainSamples]:
        """The training samples of the targets once, with labels of -1; in a fixed random order if ``shuffled``."""
        return self._samples(self._ready()[1], "train", shown=False, shuffled=shuffled)

    def predict_dataloader(self) -> BatchLoader[UnlabelledBatch]:
        """The samples of the first target's ``predict``."""
        target = self._ready()[1].domains[0]
        with of_domain(f"target '{target.name}'"):
            source, names = self.targets[target.name].to_label()
        sampler = UnlabelledSampler(encoded(source, self._encoder), names, target.all_changes(training=False))
        return BatchLoader(sampler, len(names), self.eval_batch_size)

    def _samples(
        self, side: Side, split: str, *, shown: bool, only: int | None = None, shuffled: bool = False
    ) -> BatchLoader[DomainSamples]:
        sampler = DomainSampleSampler(side, split, shown=shown, only=only, shuffled=shuffled)
        place = self._place(sampler.in_memory, training=False)
        return BatchLoader(sampler, len(sampler), self.eval_batch_size, place=place, num_workers=self.num_workers)

    def _place(self, in_memory: bool, *, training: bool) -> Place:
        # with worker processes, in-memory domains are also read on the CPU
        domains = [one for side in self._ready() for one in side.domains]
        beside = self.num_workers > 0 and not all(one.in_memory for one in domains)
        return Place.of(self.trainer, training=training, on_cpu=beside and in_memory)

    # ---- labels of the targets

    def oracle_labels(self, split: str) -> Tensor | None:
        """The labels of the targets in a split, for metrics named ``oracle/...``.

        Returns:
            ``(N,)`` int64 in the order of the samples' ``number``, -1 if unknown; ``None`` if all are unknown or
            ``oracle`` is ``"none"``.
        """
        labels = self._side("targets").labels(split)
        if self.oracle == "none" or not (labels >= 0).any():
            return None
        return torch.from_numpy(labels.copy())

    def oracle_twin(self) -> "DomainDataModule":
        """A copy in which the targets with their training labels are the sources, as an upper bound.

        Raises:
            UserError: ``oracle`` is ``"none"``, or a target has training samples without labels.
        """
        if self.oracle == "none":
            raise UserError("oracle is 'none', so target labels may not be used for training: set it to 'report'.")
        twin = self._twin(sources=self.targets, _oracle_of=self)
        twin._side("sources")
        return twin

    # ---- display

    def show(self, split: str, number: int) -> str | Tensor:
        """A target sample for display."""
        domain, own = self._side("targets").place(split, number)
        return domain.splits[split].show(own)

    def protocol(self) -> dict[str, Any]:
        """Domains, their sizes and divisions, and the permitted use of target labels."""
        sources, targets = self._ready()
        return {
            "data": type(self).__name__,
            "protocol": "transductive" if self.division.transductive else "inductive",
            "oracle": self.oracle,
            "source_validation": "held out" if self.division.hold_out_source else "trained on, too",
            "trained_on": "labels of the targets" if self._oracle_of is not None else "labels of the sources",
            "standardize": self.standardize,
            "classes": len(self.class_names),
            "sources": {one.name: {"val": len(one.splits["val"])} for one in sources.domains},
            "targets": {one.name: self._target_card(one) for one in targets.domains},
            "train_batches": {
                "batch_size": self.batch_size,
                "target_batch_size": self.target_batch_size,
                "sources": {one.name: self._training_card(one, self._oracle_of is None) for one in sources.domains},
                "targets": {one.name: self._training_card(one, False) for one in targets.domains},
            },
        }

    def _target_card(self, target: Domain) -> dict[str, Any]:
        parts = self._parts[target.name]
        seed = self._target_seed(target.name)
        how = "as given" if len(parts) == len(target.splits) else f"by sample at random, seed {seed}"
        known = {split: int((labels >= 0).sum()) for split, labels in target.labels.items()}
        return {
            "split": "all samples in every split" if self.division.transductive else how,
            "samples": {split: len(one) for split, one in target.splits.items() if split != "train"},
            "labels_known": known,
            "transform": [shown(one) for one in target.changes.transform],
        }

    def _training_card(self, domain: Domain, own: bool) -> dict[str, Any]:
        """The training data of a domain; with ``own``, its data module divides it."""
        data = self._opened[domain.name] if own else {**self.targets, **self.sources}[domain.name]
        augmentation = domain.changes.augmentation
        return {
            "data": type(data.collection).__name__,
            **({"split": data.protocol().get("split")} if own else {}),
            "samples": len(domain.splits["train"]),
            "labels_per_class": data.labels_per_class,
            "balance": data.balance,
            "seed": data.seed if own else self._target_seed(domain.name),
            "augmentation": repr(augmentation) if augmentation is not None else None,
            "transform": [shown(one) for one in domain.changes.transform],
        }


def _domains(side: str, given: Mapping[str, LabelledDataModule | Collection | str]) -> dict[str, LabelledDataModule]:
    """The data modules of a side; a collection or path gets one with default settings."""
    found = {}
    for name, one in given.items():
        with of_domain(f"{side} '{name}'"):
            found[name] = one if isinstance(one, LabelledDataModule) else LabelledDataModule(one)
    return found
