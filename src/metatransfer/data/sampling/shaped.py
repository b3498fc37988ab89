"""Draws episodes that differ in size from each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sampling.augment import Changes
from metatransfer.data.sampling.episodes import EpisodeIndices, EpisodeSampler, merged
from metatransfer.data.sampling.sampler import Stream
from metatransfer.data.sampling.shapes import EpisodeSize, TaskShape
from metatransfer.data.sources import SPLITS, Source
from metatransfer.functional.random import random_permutations, random_subsets, random_words, stream_keys


class ShapedSampler(EpisodeSampler):
    """Draws episodes whose ways, shots and queries follow a :class:`TaskShape`.

    Tasks are drawn one by one, since each has its own size; neighbouring tasks of one size are served together.

    Args:
        source: labelled samples.
        split: part of the key.
        seed: part of the key.
        size: the numbers that the shape starts from.
        shape: how many classes and samples an episode has.
        within_groups: see :class:`EpisodeSampler`.
        turn_classes: see :class:`EpisodeSampler`.
        changes: see :class:`EpisodeSampler`.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        seed: int,
        size: EpisodeSize,
        *,
        shape: TaskShape,
        within_groups: bool = False,
        turn_classes: bool = False,
        changes: Changes | None = None,
    ) -> None:
        self.shape = shape
        super().__init__(
            source, split, seed, size, within_groups=within_groups, turn_classes=turn_classes, changes=changes
        )

    @property
    def least_classes(self) -> int:
        """Fewest classes that an episode needs."""
        return self.shape.least_classes(self.size)

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Draws task by task."""
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        return merged([self._task(keys[task : task + 1]) for task in range(len(keys))])

    def _pool(self, key: NDArray[np.uint64]) -> NDArray[np.int64] | None:
        """The classes of one group; ``None`` for all."""
        if self._members is None:
            return None
        order, offsets, sizes = self._members
        group = int(random_subsets(stream_keys(key.view(np.int64), Stream.GROUP), len(sizes), 1)[0, 0])
        return order[offsets[group] : offsets[group] + sizes[group]]

    def _task(self, key: NDArray[np.uint64]) -> EpisodeIndices:
        source, pool = self.source, self._pool(key)
        shape_key = stream_keys(key.view(np.int64), Stream.SHAPE)
        available = len(source.sizes) if pool is None else len(pool)
        ways, distractors = self.shape.classes(shape_key, available, self.size)
        classes = random_subsets(key, available, ways + distractors)[0]
        classes = classes if pool is None else pool[classes]
        counts = self.shape.counts(shape_key, ways, source.sizes[classes], self.size)
        samples = self._samples(key, classes, np.sum(counts, axis=0))
        parts = []
        start = np.zeros_like(counts.support)
        for stream, count in zip((Stream.SUPPORT, Stream.QUERY, Stream.UNLABELLED), counts, strict=True):
            parts.append(_shuffled_part(stream_keys(key.view(np.int64), stream), samples, start, count))
            start = start + count
        (support, support_y), (query, query_y), (unlabelled, _) = parts
        turns = None
        if self.turn_classes:
            words = random_words(stream_keys(key.view(np.int64), Stream.TURNS), ways)
            turns = (words >> np.uint64(62)).astype(np.int64)
        return EpisodeIndices(
            support, support_y, query, query_y, classes[None, :ways], key, turns,
            unlabelled if unlabelled.shape[1] else None,
        )  # fmt: skip

    def _samples(
        self, key: NDArray[np.uint64], classes: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """As many distinct samples of each class as wanted, in random order."""
        source = self.source
        keys = stream_keys(key.view(np.int64), Stream.SAMPLES, np.arange(len(classes)))
        # a subset in random order starts with smaller ones, so classes are drawn together up to the largest count
        reach = np.minimum(source.sizes[classes], wanted.max())
        drawn: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(classes)
        for size in np.unique(reach):
            rows = np.flatnonzero(reach == size)
            found = random_subsets(keys[rows], source.sizes[classes[rows]], int(size))
            for row, one in zip(rows, found, strict=True):
                drawn[row] = source.order[source.offsets[classes[row]] + one[: wanted[row]]]
        return drawn


def _shuffled_part(
    key: NDArray[np.uint64], samples: list[NDArray[np.int64]], start: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(1, N)`` samples and labels: ``count`` of each class from ``start`` on, in random order."""
    chosen = np.concatenate([one[first : first + n] for one, first, n in zip(samples, start, count, strict=True)])
    labels = np.repeat(np.arange(len(count)), count)
    order = random_permutations(key, len(chosen))
    return chosen[order], labels[order]
