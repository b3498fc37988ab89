"""Which samples make an episode: a pure function of seed, split and index."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sources import Source
from metatransfer.functional.random import random_permutations, random_subsets, stream_keys

SPLITS = ("train", "val", "test")


class EpisodeIndices(NamedTuple):
    """Episodes as sample indices into their source.

    Attributes:
        support: ``(T, S)`` sample indices.
        support_y: ``(T, S)`` labels in ``0 .. way - 1``.
        query: ``(T, Q)`` sample indices.
        query_y: ``(T, Q)`` labels.
        classes: ``(T, way)`` the source's class behind each label.
        keys: ``(T,)`` random stream of each episode, for augmentation.
    """

    support: NDArray[np.int64]
    support_y: NDArray[np.int64]
    query: NDArray[np.int64]
    query_y: NDArray[np.int64]
    classes: NDArray[np.int64]
    keys: NDArray[np.uint64]


class EpisodeSampler:
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
    """

    def __init__(
        self, source: Source, split: str, seed: int, *, num_ways: int, num_shots: int, num_queries: int
    ) -> None:
        self.source = source
        self.split = split
        self.seed = seed
        self.num_ways = num_ways
        self.num_shots = num_shots
        self.num_queries = num_queries

    def __call__(self, indices: NDArray[np.int64]) -> EpisodeIndices:
        """Episodes by their index.

        Args:
            indices: ``(T,)`` from 0 on.

        Returns:
            The same episodes in whatever order, batch or process they are asked for.
        """
        source, ways, shots = self.source, self.num_ways, self.num_shots
        per_class = shots + self.num_queries
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        classes = random_subsets(keys, len(source.sizes), ways)
        # one stream for every class of every episode; what comes later in the episode's own stream starts at 2 * ways
        class_keys = stream_keys(keys.view(np.int64)[:, None], np.arange(ways)).reshape(-1)
        drawn = random_subsets(class_keys, source.sizes[classes].reshape(-1), per_class)
        samples = source.order[source.offsets[classes].reshape(-1, 1) + drawn].reshape(-1, ways, per_class)
        support, support_y = self._shuffled(samples[:, :, :shots], keys, 2 * ways)
        query, query_y = self._shuffled(samples[:, :, shots:], keys, 2 * ways + support.shape[1])
        return EpisodeIndices(support, support_y, query, query_y, classes, keys)

    def _shuffled(
        self, samples: NDArray[np.int64], keys: NDArray[np.uint64], start: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tasks, ways, count = samples.shape
        order = random_permutations(keys, ways * count, start=start)
        flat = samples.reshape(tasks, ways * count)
        # position p of the flat layout belongs to class p // count
        return np.take_along_axis(flat, order, axis=1), order // count
