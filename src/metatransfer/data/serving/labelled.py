"""Labelled batches of any collection."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import LabelledBatch, UnlabelledBatch
from metatransfer.checks import check_choice, check_count
from metatransfer.data.sampling.labelled import Balance, ByLength, LabelledSampler, UnlabelledSampler
from metatransfer.data.sampling.loader import BatchLoader
from metatransfer.data.serving.base import STAGE_SPLITS, CollectionDataModule, training_batches
from metatransfer.data.serving.settings import Division, Processing
from metatransfer.data.serving.splits import Splits, few_labels, sample_splits
from metatransfer.data.sources import Collection, Source, View, encoded
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError
from metatransfer.module_keys import module_key, shown

_CPU = torch.device("cpu")


class LabelledDataModule(CollectionDataModule):
    """Serves labelled batches of a training, a validation and a test split with the same classes.

    Undivided data is divided at random within each class (stratified), as determined by ``seed``; a test split is never
    drawn from a training split given by the data. The order of an epoch is a pure function of (seed, epoch): processes
    share it without overlap, and a run that resumes in the middle of an epoch continues with the next batch. Texts are
    batched with texts of similar lengths::

        data:
          class_path: LabelledDataModule
          init_args: {source: Digits, batch_size: 64}

    Args:
        source: a collection, or the path of a folder or file.
        batch_size: samples per batch, in each process.
        eval_batch_size: the same for validation, test and prediction; defaults to ``batch_size``.
        labels_per_class: number of training samples of each class; defaults to all. With the same ``seed``, the samples
            of a smaller number are among those of a larger one.
        division: division of undivided samples; ``val_fraction`` also applies if the data has no validation split.
        seed: seed of division, labels and order; independent of the seed of the weights.
        balance: ``"oversample"`` draws every class equally often in training, with repetition.
        processing: augmentation, transforms and ``mix``.
        num_workers: number of worker processes for data that is not held in memory.
        predict: folder or file of samples for ``lightning predict`` to label.

    Raises:
        UserError: a number below 1, an unknown ``balance``, or ``processing.rotations``, which are for episodes.
    """

    def __init__(
        self,
        source: Collection | str,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        labels_per_class: int | None = None,
        division: Division = Division(),
        seed: int = 0,
        balance: Balance = "none",
        processing: Processing = Processing(),
        num_workers: int = 0,
        predict: str | None = None,
    ) -> None:
        super().__init__(source, processing, seed, num_workers)
        check_count(batch_size=batch_size, eval_batch_size=eval_batch_size, labels_per_class=labels_per_class)
        check_choice("balance", balance, get_args(Balance))
        if processing.rotations is not None:
            raise UserError("processing.rotations are for episodes, but these are labelled batches: leave them out.")
        if division.by == "class":
            raise UserError(
                "division.by=class is for episodes, but labelled batches need the same classes in each split: leave it "
                "out."
            )
        for name in ("augmentation", "transform", "mix"):
            if self.collection.of_texts and getattr(processing, name):
                raise UserError(
                    f"processing.{name} is for images, but {type(self.collection).__name__} serves texts: leave it out."
                )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.labels_per_class, self.division, self.balance, self.predict = labels_per_class, division, balance, predict
        self.with_test = True
        self._splits: Splits[View] | None = None
        self._to_label: tuple[Source, tuple[str, ...]] | None = None

    # ---- splits

    @property
    def splits(self) -> Splits[View]:
        """The splits before encoding, divided on first use."""
        if self._splits is None:
            self._splits = sample_splits(self.collection, self.division, self.seed, with_test=self.with_test)
            if self.labels_per_class is not None:
                few = few_labels(self._splits.part("train"), self.labels_per_class, self.seed)
                self._splits = replace(self._splits, parts={**self._splits.parts, "train": few})
        return self._splits

    def _training(self) -> Source:
        return self.splits.part("train")

    def split(self, name: str) -> View:
        """The samples of a split as a network sees them."""
        return encoded(self.splits.part(name), self.encoder)

    def show(self, split: str, number: int) -> str | Tensor:
        """A sample of a split, or of ``"predict"``, for display: a sentence, or an image in [0, 1]."""
        source = self.to_label()[0] if split == "predict" else self.splits.part(split)
        return source.show(number)

    def labels(self, split: str) -> Tensor:
        """The labels of a split ``(N,)`` int64, in the order of the samples' numbers."""
        return torch.from_numpy(self.splits.part(split).labels)

    def content_key(self, split: str) -> str:
        """A hash of the samples of a split as a network sees them: equal for equal samples, order and transform."""
        chosen = self.splits.part(split)
        digest = hashlib.sha256(chosen.base.fingerprint().encode())
        digest.update(chosen.indices.astype("<i8").tobytes())
        for part in self.processing.transform or ():
            digest.update(module_key(part).encode())
        if self.encoder is not None:
            digest.update(self.encoder.key().encode())
        return digest.hexdigest()

    def reseeded(self, seed: int) -> Self:
        """A copy with another seed for division, labels and order, which shares the samples."""
        twin = copy.copy(self)
        twin.seed, twin.division = seed, replace(self.division, seed=None)
        twin._splits, twin.trainer = None, None
        if self._encoder is not None and not self._encoder.shared:
            twin._encoder = None  # a vocabulary depends on the training texts of a division
        return twin

    def info(self) -> DataInfo:
        """The description of the data."""
        train = self.split("train")
        first = (
            None if self.collection.of_texts else self._sampler("train", training=False).batch(np.zeros(1, int), _CPU).x
        )
        return self._described(
            batch=LabelledBatch,
            sample_shape=tuple(first.shape[1:]) if isinstance(first, Tensor) else (),
            class_names=train.class_names,
            class_counts=tuple(train.sizes.tolist()),
            sparse=train.is_sparse,
        )

    # ---- serving

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage."""
        if stage == "predict":
            self.to_label()
        for name in STAGE_SPLITS[stage]:
            if name in self.splits.parts or stage is not None:
                self.split(name)

    def to_label(self) -> tuple[Source, tuple[str, ...]]:
        """The samples for ``lightning predict`` to label, before encoding, and a name for each."""
        if self.predict is None:
            raise UserError("there is nothing to label: give a folder or file of samples, --data.predict PATH.")
        if self._to_label is None:
            self._to_label = self.collection.unlabelled(self.predict)
        return self._to_label

    def _sampler(self, split: str, *, training: bool) -> LabelledSampler:
        changes = self.processing.changes(training=training)
        source = self.split(split)
        if not training:
            return LabelledSampler(source, self.seed, changes)
        world = self.trainer.world_size if self.trainer else 1
        step = world * max(1, min(self.batch_size, len(source) // world))
        return LabelledSampler(
            source, self.seed, changes, shuffled=True, balance=self.balance, mix=self.processing.mix, step=step
        )

    def train_dataloader(self) -> BatchLoader[LabelledBatch]:
        """Shuffled batches; a last one that is not full is dropped, unless it is the only one.

        Raises:
            UserError: fewer samples than processes.
        """
        sampler = self._sampler("train", training=True)
        return training_batches(sampler, self.batch_size, self.trainer, self.num_workers)

    def _in_order(self, split: str) -> BatchLoader[LabelledBatch]:
        sampler = self._sampler(split, training=False)
        return self._loader(sampler, len(sampler), self.eval_batch_size)

    def train_samples(self) -> BatchLoader[LabelledBatch]:
        """The training samples once, in order and without augmentation."""
        return self._in_order("train")

    def samples(self, split: str) -> BatchLoader[LabelledBatch]:
        """The samples of a split once, without augmentation; texts by decreasing length, to reduce padding."""
        sampler = ByLength(self.split(split), self.seed, self.processing.changes(training=False))
        return self._loader(sampler, len(sampler), self.eval_batch_size)

    def val_dataloader(self) -> BatchLoader[LabelledBatch]:
        """The validation samples in order."""
        return self._in_order("val")

    def test_dataloader(self) -> BatchLoader[LabelledBatch]:
        """The test samples in order."""
        return self._in_order("test")

    def predict_dataloader(self, samples: str | Sequence[str] | None = None) -> BatchLoader[UnlabelledBatch]:
        """The samples to label: those of ``predict``, or of another folder, file, or list of image files or texts."""
        source, names = self.to_label() if samples is None else self.collection.unlabelled(samples)
        sampler = UnlabelledSampler(encoded(source, self.encoder), names, self.processing.changes(training=False))
        return BatchLoader(sampler, len(names), self.eval_batch_size)

    def protocol(self) -> dict[str, Any]:
        """What to report with every result on this data."""
        splits, mix = self.splits, self.processing.mix
        sizes = {name: len(view) for name, view in splits.parts.items()}
        card = {
            "data": type(self.collection).__name__,
            "split": "as given",
            "classes": len(splits.part("train").class_names),
            "samples": {name: size for name, size in sizes.items() if name != "train"},
            "train_batches": {
                "samples": sizes["train"],
                "labels_per_class": self.labels_per_class,
                "batch_size": self.batch_size,
                "balance": self.balance,
                "mix": type(mix).__name__ if mix is not None else None,
                "seed": self.seed,
            },
            "augmentation": repr(self.processing.augmentation) if self.processing.augmentation is not None else None,
            "transform": [shown(one) for one in self.processing.transform or ()],
        }
        if self.encoder is not None and self.encoder.size:
            card |= {"vocabulary": self.encoder.size, "lengths": "similar in each training batch"}
        return self._with_split(card, splits.how)
