"""Labelled samples of a split, and the batches that they are served in."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.batches import Inputs, LabelledBatch, UnlabelledBatch
from metatransfer.data.augment import Augmentation
from metatransfer.data.samplers import SPLITS, Stream, TaskSampler
from metatransfer.data.sources import Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, random_words, stream_keys

Balance = Literal["none", "oversample"]


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
