"""Which samples make an episode: a pure function of seed, split and index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Episode, MetaBatch
from metatransfer.data.augment import Augmentation, by_sample
from metatransfer.data.sources import Source, rotate
from metatransfer.errors import UserError
from metatransfer.functional.random import (
    random_permutations,
    random_subsets,
    random_words,
    stream_keys,
)

SPLITS = ("train", "val", "test")


class Stream(IntEnum):
    """What an episode's random numbers are for; each has a stream of its own."""

    SAMPLES = 0
    SUPPORT = 1
    QUERY = 2
    GROUP = 3
    TURNS = 4
    SHAPE = 5
    UNLABELLED = 6
    CLASS_BATCHES = 7
    DIVISION = 8
    FEW_LABELS = 9


class EpisodeIndices(NamedTuple):
    """Episodes as sample indices into their source.

    Attributes:
        support: ``(T, S)`` sample indices.
        support_y: ``(T, S)`` labels in ``0 .. way - 1``.
        query: ``(T, Q)`` sample indices.
        query_y: ``(T, Q)`` labels.
        classes: ``(T, way)`` the source's class behind each label.
        keys: ``(T,)`` random stream of each episode, for augmentation.
        turns: ``(T, way)`` quarter turns of each class in this episode, ``None`` where images stay upright.
        unlabelled: ``(T, U)`` sample indices, ``None`` where there are none.
    """

    support: NDArray[np.int64]
    support_y: NDArray[np.int64]
    query: NDArray[np.int64]
    query_y: NDArray[np.int64]
    classes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    turns: NDArray[np.int64] | None = None
    unlabelled: NDArray[np.int64] | None = None


_DRAWN_AT_ONCE = 256  # tasks; more gains nothing


def _tasks(drawn: EpisodeIndices, start: int, end: int) -> EpisodeIndices:
    return EpisodeIndices(*(None if part is None else part[start:end] for part in drawn))  # type: ignore[arg-type]


def merged(tasks: list[EpisodeIndices]) -> list[EpisodeIndices]:
    """Single tasks as one batch where they are all of one size, else as they came.

    Args:
        tasks: each with ``T = 1``.

    Returns:
        A list of one, or ``tasks``.
    """
    shapes = {tuple(None if part is None else part.shape for part in task) for task in tasks}
    if len(shapes) != 1:
        return tasks
    parts = zip(*tasks, strict=True)
    return [EpisodeIndices(*(None if part[0] is None else np.concatenate(part) for part in parts))]  # type: ignore[arg-type]


class TaskSampler(ABC):
    """Makes episodes by their index: drawn from labelled samples, or generated.

    Attributes:
        in_memory: whether episodes are made on the device, so that worker processes would only be in the way.
    """

    in_memory: bool = True

    @abstractmethod
    def episodes(
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> MetaBatch:
        """Episodes by their index, whatever batch or process they are asked for in.

        Args:
            indices: ``(T,)`` from 0 on.
            device: where the tensors are wanted.
            augmentation: applied to every sample, with random numbers from the episode's own stream.

        Returns:
            An :class:`~metatransfer.batches.Episode` of ``T`` tasks, or a list of ``T`` where these differ in size.
        """

    def batches(
        self, indices: Sequence[NDArray[np.int64]], device: torch.device, augmentation: Augmentation | None = None
    ) -> Iterator[MetaBatch]:
        """Meta-batches one after the other, each as :meth:`episodes` gives it.

        Args:
            indices: those of each meta-batch.
            device: where the tensors are wanted.
            augmentation: applied to every sample.

        Yields:
            A meta-batch.
        """
        for batch in indices:
            yield self.episodes(batch, device, augmentation)


class EpisodeSampler(TaskSampler):
    """Draws n-way k-shot episodes, all of a meta-batch at once.

    Classes are drawn without replacement, and their order is their label, so that labels mean something else in every
    episode. Samples are drawn without replacement in each class. Support and query are shuffled, so that a position
    gives no label away. The cost per episode does not depend on the number of classes or samples.

    Args:
        source: where the samples come from.
        split: ``"train"``, ``"val"`` or ``"test"``; part of the key.
        seed: part of the key.
        num_ways: classes of an episode.
        num_shots: support samples of each class.
        num_queries: query samples of each class.
        within_groups: draw all classes of an episode from one group (alphabet, superclass), each group that has enough
            classes being equally likely.
        turn_classes: turn each class by a random number of quarter turns in each episode (Finn et al. 2017).

        transform: applied to every sample after it was read, turned and augmented, in batch on the device.

    Raises:
        UserError: no group has enough classes, or the source knows no groups.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        seed: int,
        *,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        within_groups: bool = False,
        turn_classes: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source = source
        self.split = split
        self.seed = seed
        self.num_ways = num_ways
        self.num_shots = num_shots
        self.num_queries = num_queries
        self.turn_classes = turn_classes
        self.transform = transform
        self._members = self._groups() if within_groups else None

    @property
    def least_classes(self) -> int:
        """Classes that an episode takes at least."""
        return self.num_ways

    def _groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes sorted by group, with the offset and size of each group that is large enough.

        Raises:
            UserError: there is none, or there are no groups.
        """
        if self.source.groups is None:
            raise UserError(f"{self.source.name}: its classes have no groups, so episodes cannot stay within one.")
        names, group_of = np.unique(np.asarray(self.source.groups), return_inverse=True)
        sizes = np.bincount(group_of)
        enough = sizes >= self.least_classes
        if not enough.any():
            largest = names[sizes.argmax()]
            raise UserError(
                f"{self.source.name}: no group has the {self.least_classes} classes of an episode; the largest, "
                f"'{largest}', has {sizes.max()}: lower num_ways or draw across groups."
            )
        offsets = np.concatenate([[0], sizes.cumsum()[:-1]])
        return group_of.argsort(kind="stable"), offsets[enough], sizes[enough]

    def _classes(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        if self._members is None:
            return random_subsets(keys, len(self.source.sizes), self.num_ways)
        order, offsets, sizes = self._members
        group_keys = stream_keys(keys.view(np.int64), Stream.GROUP)
        group = random_subsets(group_keys, len(sizes), 1)[:, 0]
        classes: NDArray[np.int64] = order[offsets[group][:, None] + random_subsets(keys, sizes[group], self.num_ways)]
        return classes

    def __call__(self, indices: NDArray[np.int64]) -> EpisodeIndices:
        """Episodes by their index, all in one.

        Args:
            indices: ``(T,)`` from 0 on.

        Returns:
            The same episodes in whatever order, batch or process they are asked for.

        Raises:
            UserError: they differ in size.
        """
        drawn = self.draw(indices)
        if len(drawn) != 1:
            raise UserError("these episodes differ in size, so they do not fit into one array: ask draw(indices).")
        return drawn[0]

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Episodes by their index.

        Args:
            indices: ``(T,)`` from 0 on.

        Returns:
            One with all ``T`` tasks; a subclass whose tasks differ in size gives one for each.
        """
        source, ways, shots = self.source, self.num_ways, self.num_shots
        per_class = shots + self.num_queries
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        classes = self._classes(keys)
        # one stream for every class of every episode; what comes later in the episode's own stream starts at 2 * ways
        class_keys = stream_keys(keys.view(np.int64)[:, None], Stream.SAMPLES, np.arange(ways)).reshape(-1)
        drawn = random_subsets(class_keys, source.sizes[classes].reshape(-1), per_class)
        samples = source.order[source.offsets[classes].reshape(-1, 1) + drawn].reshape(-1, ways, per_class)
        support, support_y = self._shuffled(samples[:, :, :shots], keys, 2 * ways)
        query, query_y = self._shuffled(samples[:, :, shots:], keys, 2 * ways + support.shape[1])
        turns = None
        if self.turn_classes:
            words = random_words(stream_keys(keys.view(np.int64), Stream.TURNS), ways)
            turns = (words >> np.uint64(62)).astype(np.int64)
        return [EpisodeIndices(support, support_y, query, query_y, classes, keys, turns)]

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether the source is."""
        return self.source.in_memory

    def episodes(
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> MetaBatch:
        """Draws, reads, turns, augments and transforms, all tasks of one size in one batch."""
        return self._serve(self.draw(indices), device, augmentation)

    def batches(
        self, indices: Sequence[NDArray[np.int64]], device: torch.device, augmentation: Augmentation | None = None
    ) -> Iterator[MetaBatch]:
        """Draws the episodes of several meta-batches at once: numpy's calls cost more than what they draw.

        Yields:
            A meta-batch.
        """
        waiting: list[NDArray[np.int64]] = []
        for place, batch in enumerate(indices):
            waiting.append(batch)
            if place + 1 < len(indices) and sum(map(len, waiting)) + len(batch) <= _DRAWN_AT_ONCE:
                continue
            drawn, start = self.draw(np.concatenate(waiting)), 0
            for end in np.cumsum([len(one) for one in waiting]).tolist():
                part = [_tasks(drawn[0], start, end)] if len(drawn) == 1 else merged(drawn[start:end])
                yield self._serve(part, device, augmentation)
                start = end
            waiting = []

    def _serve(self, drawn: list[EpisodeIndices], device: torch.device, augmentation: Augmentation | None) -> MetaBatch:
        served = [self._episode(one, device, augmentation) for one in drawn]
        return served[0] if len(served) == 1 else served

    def _episode(self, drawn: EpisodeIndices, device: torch.device, augmentation: Augmentation | None) -> Episode:
        support_x = self._read(drawn.support, drawn.support_y, drawn, Stream.SUPPORT, device, augmentation)
        query_x = self._read(drawn.query, drawn.query_y, drawn, Stream.QUERY, device, augmentation)
        support_y, query_y = (
            torch.from_numpy(y).to(device, non_blocking=True) for y in (drawn.support_y, drawn.query_y)
        )
        classes = torch.from_numpy(drawn.classes).to(device, non_blocking=True)
        unlabelled_x = None
        if drawn.unlabelled is not None:
            unlabelled_x = self._read(drawn.unlabelled, None, drawn, Stream.UNLABELLED, device, augmentation)
        return Episode(support_x, support_y, query_x, query_y, classes, unlabelled_x)

    def _read(
        self,
        samples: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        drawn: EpisodeIndices,
        stream: Stream,
        device: torch.device,
        augmentation: Augmentation | None,
    ) -> Tensor:
        x = self.source.read(torch.from_numpy(samples), device)
        if drawn.turns is not None and labels is not None:
            x = rotate(x, torch.from_numpy(np.take_along_axis(drawn.turns, labels, axis=1)).to(device))
        if augmentation is not None:
            x = augmentation.batch(x, stream_keys(drawn.keys.view(np.int64), stream))
        return x if self.transform is None else by_sample(self.transform, x)

    def _shuffled(
        self, samples: NDArray[np.int64], keys: NDArray[np.uint64], start: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tasks, ways, count = samples.shape
        order = random_permutations(keys, ways * count, start=start)
        flat = samples.reshape(tasks, ways * count)
        # position p of the flat layout belongs to class p // count
        return np.take_along_axis(flat, order, axis=1), order // count
