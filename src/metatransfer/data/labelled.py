"""The base of all data modules that serve labelled samples, and what they are made of."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.batches import Inputs, LabelledBatch, UnlabelledBatch
from metatransfer.checks import check_choice, check_positive, check_seed, did_you_mean
from metatransfer.data.augment import Augmentation, apply_transforms, check_deterministic
from metatransfer.data.loaders import EpisodeLoader, training_position
from metatransfer.data.samplers import SPLITS, Stream, TaskSampler
from metatransfer.data.sources import Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, random_words, stream_keys

Balance = Literal["none", "oversample"]
BALANCES: tuple[str, ...] = get_args(Balance)
_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}


class Split:
    """Some samples of a source: one split of labelled data.

    Args:
        source: where they come from.
        indices: ``(N,)`` which of its samples.
        class_names: of all splits; the source may have fewer.

    Attributes:
        labels: ``(N,)`` class of each sample, its place in ``class_names``.
        counts: ``(C,)`` samples of each class, 0 where a class has none here.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        self.source, self.indices, self.class_names = source, indices, class_names
        places = {name: place for place, name in enumerate(class_names)}
        self.labels = np.array([places[name] for name in source.class_names], np.int64)[source.labels[indices]]
        self.counts = np.bincount(self.labels, minlength=len(class_names))

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, numbers: NDArray[np.int64], device: torch.device) -> Inputs:
        """Samples by their number in this split.

        Args:
            numbers: ``(N,)``.
            device: where they are wanted.

        Returns:
            ``(N, *shape)`` float32, images in [0, 1]; texts as tokens.
        """
        return self.source.read(torch.from_numpy(self.indices[numbers]), device)


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
        _check_classes(parts, first)
        wanted = {"val": self.val_fraction, "test": self.test_fraction if first == "all" else 0.0}
        taken = _stratified(
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


class LabelledSampler(TaskSampler):
    """Labelled batches of a split by the places of their samples in the epochs.

    Args:
        split: the samples.
        seed: part of the key of all that is random.
        transform: applied to the samples of a batch after augmentation, on the device.
        shuffled: whether every epoch has an order of its own.
        balance: see :class:`LabelledDataModule`.
        mix: see :class:`LabelledDataModule`.
        num_classes: for the mixtures of labels.
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        transform: partial[Tensor] | None = None,
        *,
        shuffled: bool = False,
        balance: Balance = "none",
        mix: nn.Module | None = None,
        num_classes: int = 0,
    ) -> None:
        self.split, self.seed, self.transform = split, seed, transform
        self.shuffled, self.balance, self.mix, self.num_classes = shuffled, balance, mix, num_classes
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether the source is."""
        return self.split.source.in_memory

    def _key(self, *parts: Any) -> NDArray[np.uint64]:  # noqa: ANN401
        keys: NDArray[np.uint64] = stream_keys(self.seed, SPLITS.index("train"), Stream.CLASS_BATCHES, *parts)
        return keys

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the samples in an epoch.

        Args:
            epoch: its number.

        Returns:
            ``(N,)`` numbers of samples in the split; with ``balance="oversample"`` some of them repeatedly.
        """
        if not self.shuffled:
            return np.arange(len(self))
        if epoch != self._epoch:
            order = random_permutations(self._key(np.array([epoch])), len(self))[0]
            self._epoch, self._order = epoch, self._balanced(order, epoch) if self.balance != "none" else order
        return self._order

    def _balanced(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """As many places, every class having as many of them (one more or less), its samples in turn."""
        labels = self.split.labels[order]
        classes = np.flatnonzero(self.split.counts)
        wanted = np.arange(len(order)) % len(classes)
        members = {label: order[labels == label] for label in classes}
        found = np.empty(len(order), np.int64)
        for place, label in enumerate(classes):
            rows = np.flatnonzero(wanted == place)
            found[rows] = np.resize(members[label], len(rows))
        balanced: NDArray[np.int64] = found[random_permutations(self._key(np.array([epoch]), 2), len(order))[0]]
        return balanced

    def episodes(  # type: ignore[override]
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> LabelledBatch:
        """A labelled batch; not a meta-batch, but served in the same way.

        Args:
            indices: ``(N,)`` places in the epochs one after the other, all of one epoch.
            device: where the tensors are wanted.
            augmentation: applied to every sample, with random numbers of its own.

        Returns:
            Samples and labels.
        """
        epoch = int(indices[0]) // len(self)
        numbers = self.order(epoch)[indices - epoch * len(self)]
        x = self.split.read(numbers, device)
        if not isinstance(x, Tensor):
            self._check_texts(augmentation)
        y = torch.from_numpy(self.split.labels[numbers]).to(device, non_blocking=True)
        if isinstance(x, Tensor):
            if augmentation is not None:
                x = augmentation.batch(x.unsqueeze(1), self._key(indices, 1)).squeeze(1)  # each sample a task of one
            if self.transform is not None:
                x = self.transform(x)
            if self.mix is not None:
                x, y = self._mixed(x, y, indices)
        return LabelledBatch(x, y, torch.from_numpy(numbers).to(device, non_blocking=True))

    def _mixed(self, x: Tensor, y: Tensor, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The batch through ``mix``, whose random numbers follow from the place of the batch.

        Raises:
            UserError: it fails.
        """
        seed = int(random_words(self._key(indices[:1], 3), 1)[0, 0] >> np.uint64(1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                mixed: tuple[Tensor, Tensor] = self.mix(x, nn.functional.one_hot(y, self.num_classes).to(x.dtype))  # type: ignore[misc]
            except Exception as error:  # whatever torchvision, or a user's own, raises
                raise UserError(
                    f"mix, {self.mix}, fails on samples of shape {tuple(x.shape)} ({error}): MixUp and CutMix need "
                    "images (N, C, H, W); leave it out."
                ) from error
        return mixed

    def _check_texts(self, augmentation: Augmentation | None) -> None:
        """Refuses changes that would silently not happen.

        Raises:
            UserError: an augmentation, a transform or a mix.
        """
        for name, given in (("augmentation", augmentation), ("transform", self.transform), ("mix", self.mix)):
            if given is not None:
                raise UserError(f"{name} changes samples of numbers, but these are texts: leave it out.")


class UnlabelledLoader:
    """Serves samples without labels, in their order.

    Args:
        source: the samples.
        names: a name for each.
        batch_size: samples of a batch.
        transform: applied to the samples of a batch.
    """

    def __init__(
        self, source: Source, names: tuple[str, ...], batch_size: int, transform: partial[Tensor] | None = None
    ) -> None:
        self.source, self.names, self.batch_size, self.transform = source, names, batch_size, transform

    def __len__(self) -> int:
        return -(-len(self.names) // self.batch_size)

    def __iter__(self) -> Any:  # noqa: ANN401
        for start in range(0, len(self.names), self.batch_size):
            names = self.names[start : start + self.batch_size]
            x: Inputs = self.source.read(torch.arange(start, start + len(names)), torch.device("cpu"))
            if self.transform is not None and isinstance(x, Tensor):
                x = self.transform(x)
            yield UnlabelledBatch(x, names)


def _check_classes(parts: Mapping[str, Source], first: str) -> None:
    """Refuses what no classifier can learn.

    Raises:
        UserError: no samples, one class only, or classes that the training does not have.
    """
    base = parts[first]
    for name, source in parts.items():
        if not len(source):
            raise UserError(f"{source.name} has no samples: add some, or leave {name} out.")
    if len(base.class_names) < 2:
        raise UserError(
            f"{base.name} has one class only ('{base.class_names[0]}'): a classifier needs two or more; check the "
            "column or the folders of the labels."
        )
    known = set(base.class_names)
    for name, source in parts.items():
        unseen = [one for one in source.class_names if one not in known]
        if unseen:
            count = f"{len(unseen)} classes" if len(unseen) > 1 else "a class"
            raise UserError(
                f"{source.name} has {count} that the training has no sample of ('{unseen[0]}'): a classifier cannot "
                f"know {'them' if len(unseen) > 1 else 'it'}; add training samples, or take "
                f"{'them' if len(unseen) > 1 else 'it'} out of {name}{did_you_mean(unseen[0], known)}"
            )


def _stratified(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Divides every class at random: at least one sample to each part, and the rest, at least one, to training.

    Raises:
        UserError: a class has fewer samples than there are parts.
    """
    order = random_permutations(stream_keys(seed, Stream.DIVISION, np.array([0])), len(source))[0]
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("train", *fractions)}
    for label, name in enumerate(source.class_names):
        members = order[source.labels[order] == label]
        if len(members) <= len(fractions):
            raise UserError(
                f"{source.name}: class '{name}' has {len(members)} sample{'s' * (len(members) != 1)}, but needs one "
                f"for each of {', '.join(found)}: add some, or leave the class out."
            )
        start = 0
        for place, (part, fraction) in enumerate(fractions.items()):
            left = len(members) - start - (len(fractions) - place)  # one each for the parts to come, and for training
            count = min(max(1, round(fraction * len(members))), left)
            found[part].append(members[start : start + count])
            start += count
        found["train"].append(members[start:])
    return {part: np.sort(np.concatenate(rows)) for part, rows in found.items()}
