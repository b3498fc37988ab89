"""The base of all data modules that serve labelled samples, and what they are made of."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.checks import check_choice, check_positive, check_seed
from metatransfer.data.augment import Augmentation, apply_transforms, check_deterministic
from metatransfer.data.labelled_division import check_classes, stratified
from metatransfer.data.labelled_sampler import Balance, LabelledSampler, Split, UnlabelledLoader
from metatransfer.data.loaders import EpisodeLoader, training_position
from metatransfer.data.samplers import SPLITS, Stream
from metatransfer.data.sources import Source
from metatransfer.data.unlabelled import UnlabelledPart, joined, without_labels
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys

BALANCES: tuple[str, ...] = get_args(Balance)
_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}


class LabelledDataModule(LightningDataModule, ABC):
    """Serves labelled batches of a training, a validation and a test split with the same classes.

    A subclass says where the samples come from (:meth:`parts`). What comes undivided is divided class by class
    (stratified), in the same way for the same ``seed``; a test split is never drawn from where the data brings one. The
    order of an epoch is a pure function of (seed, epoch): processes share it without overlap, and a run that resumes in
    the middle of an epoch goes on with the next batch.

    Args:
        batch_size: samples of a batch, in each process.
        eval_batch_size: the same in validation, test and prediction; as in training where left out.
        labels_per_class: how many samples of each class the training may see; all where left out. Those of a smaller
            number are among those of a larger one, for the same ``seed``.
        val_fraction: part of each class for validation, where the data brings none.
        test_fraction: part of each class for the test, where the data comes undivided.
        seed: which division, which labels and which order; independent of the seed of the weights.
        balance: ``"oversample"`` draws every class equally often in training, with repetition, however unequal the
            classes are.
        augmentation: random changes of the training samples, e.g. ``RandomAffine`` or ``TorchvisionTransforms``.
        mix: mixes the samples of a training batch and their labels, ``torchvision.transforms.v2.MixUp`` or ``CutMix``.
        transform: fixed changes of all samples, of ``torchvision.transforms.v2``, in batch on the device.
        num_workers: processes that read data which is not held in memory.

    Attributes:
        default_val_fraction: what ``val_fraction`` is where it is left out.

    Raises:
        UserError: a number below 1, fractions that leave nothing to train on, a random ``transform``, or an unknown
            ``balance``.
    """

    default_val_fraction: ClassVar[float] = 0.1

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        labels_per_class: int | None = None,
        val_fraction: float | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        balance: Balance = "none",
        augmentation: Augmentation | None = None,
        mix: nn.Module | None = None,
        transform: list[nn.Module] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        val_fraction = self.default_val_fraction if val_fraction is None else val_fraction
        check_positive(batch_size=batch_size, eval_batch_size=eval_batch_size, labels_per_class=labels_per_class)
        check_positive(val_fraction=val_fraction, test_fraction=test_fraction)
        if val_fraction + test_fraction >= 1:
            raise UserError(
                f"val_fraction + test_fraction must be below 1 to leave something to train on, but are {val_fraction} "
                f"+ {test_fraction}."
            )
        check_seed(seed=seed)
        check_choice("balance", balance, BALANCES)
        check_deterministic(transform or ())
        if num_workers < 0:
            raise UserError(f"num_workers must be 0 or more, but is {num_workers}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.labels_per_class = labels_per_class
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.seed, self.balance = seed, balance
        self.augmentation, self.mix = augmentation, mix
        self.transform = list(transform or ())
        self.num_workers = num_workers
        self._parts: dict[str, Source] | None = None
        self._splits: dict[str, Split] | None = None
        self._to_label: tuple[Source, tuple[str, ...]] | None = None

    # ---- what a subclass says

    @abstractmethod
    def parts(self) -> Mapping[str, Source]:
        """The labelled samples: ``{"all": source}``, or ``"train"`` with or without ``"val"`` and ``"test"``.

        The classes are those of the training; the other sources may have fewer, in any order.
        """

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples apart from their labels, for a target domain; in parts as :meth:`parts` has them.

        A subclass says it anew where samples may come without labels, or where :meth:`parts` sorts them by their
        labels: nothing that a target is trained or validated on may follow from these.
        """
        self._parts = self._parts or dict(self.parts())
        return {name: without_labels(source) for name, source in self._parts.items()}

    def unlabelled(self) -> tuple[Source, tuple[str, ...]]:
        """What ``lightning predict`` is to label: samples, whose labels are not looked at, and their names.

        Raises:
            UserError: nothing was given to label.
        """
        raise UserError(f"{type(self).__name__} has nothing to label: it does not serve lightning predict.")

    def show(self, split: str, number: int) -> str | Tensor:
        """A sample as a person looks at it: a sentence, or a picture ``(C, H, W)`` in [0, 1].

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            number: of the sample in it.

        Returns:
            By default the sample as it is read, before any transform.
        """
        read = self.split(split).read(np.array([number]), torch.device("cpu"))
        return read[0] if isinstance(read, Tensor) else str(read[0])

    # ---- what follows

    @property
    def splits(self) -> dict[str, Split]:
        """The splits, divided when first asked for."""
        if self._splits is None:
            self._parts = self._parts or dict(self.parts())
            self._splits = self._divided(self._parts)
        return self._splits

    def split(self, name: str) -> Split:
        """The samples of a split.

        Args:
            name: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The split.

        Raises:
            UserError: the data brings no test split.
        """
        if name not in self.splits:
            raise UserError(
                f"{type(self).__name__} has no {name} split: the data comes divided into "
                f"{', '.join(self.splits)}; add it, or give all samples undivided."
            )
        return self.splits[name]

    def content_key(self, split: str) -> str:
        """Names the samples of a split as a network sees them: equal for equal samples, order and transform.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Hexadecimal digits.
        """
        chosen = self.split(split)
        digest = hashlib.sha256(chosen.source.fingerprint().encode())
        digest.update(chosen.indices.astype("<i8").tobytes())
        for part in self.transform:
            digest.update(repr(part).encode())
            for name, value in part.state_dict().items():
                digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def reseeded(self, seed: int) -> Self:
        """The same data under another seed: another division, other labels, another order.

        Args:
            seed: which.

        Returns:
            A copy that shares the samples.
        """
        self._parts = self._parts or dict(self.parts())
        twin = copy.copy(self)
        twin.seed, twin._splits, twin.trainer = seed, None, None
        return twin

    def without_test(self) -> Self:
        """The same data with the test samples in the training, for what is tested on other data.

        Returns:
            A copy that shares the samples.
        """
        self._parts = self._parts or dict(self.parts())
        twin = copy.copy(self)
        first = "all" if "all" in self._parts else "train"
        twin._parts = {first: joined([self._parts[name] for name in (first, "test") if name in self._parts])}
        twin._parts |= {name: source for name, source in self._parts.items() if name == "val"}
        twin.test_fraction, twin._splits, twin.trainer = 0.0, None, None
        return twin

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.split("train").class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """``(C,)`` training samples of each class, after ``labels_per_class``."""
        return self.split("train").counts

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample after the transform, for networks that are to be built for it; ``()`` for texts."""
        first = self._sampler("train", False).episodes(np.array([0]), torch.device("cpu"))
        return tuple(first.x.shape[1:]) if isinstance(first.x, Tensor) else ()

    def setup(self, stage: str | None = None) -> None:
        """Opens what a stage needs.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None`` for all splits.
        """
        if stage == "predict":
            self._to_label = self.unlabelled()
        for name in _STAGE_SPLITS.get(stage, ()):
            if name in self.splits or stage is not None:
                self.split(name)

    def _divided(self, parts: dict[str, Source]) -> dict[str, Split]:
        whole = {name: np.arange(len(source)) for name, source in parts.items()}
        first = "all" if "all" in parts else "train"
        base = parts[first]
        check_classes(parts, first)
        wanted = {"val": self.val_fraction, "test": self.test_fraction if first == "all" else 0.0}
        taken = stratified(
            base, {name: wanted[name] for name in wanted if name not in parts and wanted[name]}, self.seed
        )
        names = base.class_names
        splits = {name: Split(base, indices, names) for name, indices in taken.items()}
        splits |= {name: Split(parts[name], whole[name], names) for name in ("val", "test") if name in parts}
        if self.labels_per_class is not None:
            splits["train"] = self._few(splits["train"], self.labels_per_class)
        return {name: splits[name] for name in SPLITS if name in splits}

    def _few(self, split: Split, count: int) -> Split:
        """So many samples of each class, in the order of the whole split.

        Raises:
            UserError: a class has fewer.
        """
        least = int(split.counts.argmin())
        if split.counts[least] < count:
            raise UserError(
                f"labels_per_class={count} is more than class '{split.class_names[least]}' has for training, "
                f"{split.counts[least]}: lower it."
            )
        order = random_permutations(stream_keys(self.seed, Stream.FEW_LABELS, np.array([0])), len(split))[0]
        by_class = order[split.labels[order].argsort(kind="stable")]
        starts = np.concatenate([[0], split.counts.cumsum()[:-1]])
        chosen = np.sort(np.concatenate([by_class[start : start + count] for start in starts]))
        return Split(split.source, split.indices[chosen], split.class_names)

    # ---- loaders

    def _sampler(self, split: str, training: bool) -> LabelledSampler:
        transform = partial(apply_transforms, self.transform) if self.transform else None
        return LabelledSampler(
            self.split(split), self.seed, transform,
            shuffled=training, balance=self.balance if training else "none", mix=self.mix if training else None,
            num_classes=self.num_classes,
        )  # fmt: skip

    def _loader(self, sampler: LabelledSampler, batch_size: int, *, training: bool) -> EpisodeLoader:
        trainer = self.trainer
        return EpisodeLoader(
            sampler,
            episodes=len(sampler),
            tasks_per_batch=batch_size,
            drop_last=training,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            position=partial(training_position, trainer) if training else lambda: (0, 0),
            device=lambda: trainer.strategy.root_device if trainer else torch.device("cpu"),
            augmentation=self.augmentation if training else None,
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> EpisodeLoader:
        """Shuffled batches; a last one that is not full is left out, unless there is no other.

        Raises:
            UserError: fewer samples than processes.
        """
        sampler = self._sampler("train", True)
        world = self.trainer.world_size if self.trainer else 1
        size = min(self.batch_size, len(sampler) // world)
        if not size:
            raise UserError(f"{len(sampler)} training samples are fewer than the {world} processes: use fewer.")
        return self._loader(sampler, size, training=True)

    def train_samples(self) -> EpisodeLoader:
        """The training samples once, in their order and without augmentation, for methods that read them as a whole."""
        return self._loader(self._sampler("train", False), self.eval_batch_size, training=False)

    def val_dataloader(self) -> EpisodeLoader:
        """The validation samples in their order."""
        return self._loader(self._sampler("val", False), self.eval_batch_size, training=False)

    def test_dataloader(self) -> EpisodeLoader:
        """The test samples in their order."""
        return self._loader(self._sampler("test", False), self.eval_batch_size, training=False)

    def predict_dataloader(self) -> UnlabelledLoader:
        """What is to be labelled, in batches."""
        source, names = self._to_label or self.unlabelled()
        transform = partial(apply_transforms, self.transform) if self.transform else None
        return UnlabelledLoader(source, names, self.eval_batch_size, transform)

    def info(self) -> Any:  # noqa: ANN401
        """TEMPORARY."""
        from metatransfer.batches import LabelledBatch
        from metatransfer.data_info import DataInfo

        given = getattr(self, "tokenizer_name", None) is not None
        return DataInfo(
            LabelledBatch, () if hasattr(self, "tokenizer_name") else self.sample_shape(),
            class_names=self.class_names, class_counts=tuple(self.class_counts.tolist()),
            vocabulary_size=self.vocabulary_size if given else None,  # type: ignore[attr-defined]
            skipped=dict(getattr(self, "skipped", {})),
            shared_vocabulary=getattr(self, "tokenizer_name", None) != "words",
        )  # fmt: skip

    def samples(self, split: str) -> EpisodeLoader:
        """TEMPORARY."""
        if hasattr(self, "samples_by_length"):
            return self.samples_by_length(split)  # type: ignore[no-any-return]
        return self.train_samples() if split == "train" else self.val_dataloader()

    def labels(self, split: str) -> Tensor:
        """TEMPORARY."""
        return torch.from_numpy(self.split(split).labels)

    def protocol(self) -> dict[str, Any]:
        """Classes, samples and labels of the splits."""
        sizes = {name: len(split) for name, split in self.splits.items()}
        return {
            "data": type(self).__name__,
            "split": "as given" if self._given() else f"stratified at random, seed {self.seed}",
            "classes": self.num_classes,
            "samples": {name: size for name, size in sizes.items() if name != "train"},
            "train_batches": {
                "samples": sizes["train"],
                "labels_per_class": self.labels_per_class,
                "batch_size": self.batch_size,
                "balance": self.balance,
                "mix": type(self.mix).__name__ if self.mix is not None else None,
                "seed": self.seed,
            },
            "augmentation": repr(self.augmentation) if self.augmentation is not None else None,
            "transform": [repr(one) for one in self.transform],
        }

    def _given(self) -> bool:
        sources = {id(split.source) for split in self.splits.values()}
        return len(sources) == len(self.splits)
