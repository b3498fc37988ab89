"""Episodes that differ in size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sampling.episodes import EpisodeIndices, EpisodeSampler, merged
from metatransfer.data.sampling.sampler import Stream
from metatransfer.functional.random import random_permutations, random_subsets, stream_keys


class ShapedSampler(EpisodeSampler):
    """Draws episodes whose ways, shots and queries follow a task shape.

    Tasks are drawn one by one, since each has its own size; neighbouring tasks of one size are served together.
    """

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Draws task by task."""
        keys = self._keys(indices)
        return merged([self._task(keys[task : task + 1]) for task in range(len(keys))])

    def _task(self, key: NDArray[np.uint64]) -> EpisodeIndices:
        source, pool = self.source, np.arange(len(self.source.sizes))
        if self._members is not None:  # the classes of one group
            members, offset, count = self._group(key)
            pool = members[offset[0] : offset[0] + count[0]]
        shape_key = stream_keys(key.view(np.int64), Stream.SHAPE)
        ways, distractors = self.shape.classes(shape_key, len(pool), self.size)
        classes = pool[random_subsets(key, len(pool), ways + distractors)[0]]
        counts = self.shape.counts(shape_key, ways, source.sizes[classes], self.size)
        samples = self._samples(key, classes, np.sum(counts, axis=0))
        parts = []
        start = np.zeros_like(counts.support)
        for stream, count in zip((Stream.SUPPORT, Stream.QUERY, Stream.UNLABELLED), counts, strict=True):
            parts.append(_shuffled_part(stream_keys(key.view(np.int64), stream), samples, start, count))
            start = start + count
        (support, support_y), (query, query_y), (unlabelled, _) = parts
        return EpisodeIndices(
            support, support_y, query, query_y, classes[None, :ways], key, self._turns(key, ways),
            unlabelled if unlabelled.shape[1] else None,
        )  # fmt: skip

    def _samples(
        self, key: NDArray[np.uint64], classes: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """``wanted`` distinct samples of each class, in random order."""
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
