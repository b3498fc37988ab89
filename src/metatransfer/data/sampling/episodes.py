"""Draws the samples of episodes, as a pure function of seed, split and index."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Episode, Inputs, MetaBatch
from metatransfer.data.sampling.augment import Changes
from metatransfer.data.sampling.loader import Sampler, Stream
from metatransfer.data.sampling.shapes import EpisodeSize, FixedShape, TaskShape
from metatransfer.data.sources import SPLITS, Source, TaskGenerator, read_samples, rotate
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, random_subsets, random_words, stream_keys


class EpisodeIndices(NamedTuple):
    """Episodes as sample indices into their source.

    Attributes:
        support: ``(T, S)`` sample indices.
        support_y: ``(T, S)`` labels in ``0 .. way - 1``.
        query: ``(T, Q)`` sample indices.
        query_y: ``(T, Q)`` labels.
        classes: ``(T, way)`` the source's class behind each label.
        keys: ``(T,)`` random stream of each episode, for augmentation.
        turns: ``(T, way)`` quarter turns of each class in this episode, ``None`` if images are not turned.
        unlabelled: ``(T, U)`` sample indices, or ``None``.
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
_TASKS_OF_A_SIZE = 16  # generated tasks with consecutive indices; the usual size of a meta-batch


def tasks_of(drawn: EpisodeIndices, start: int, end: int) -> EpisodeIndices:
    """Some of the tasks."""
    return EpisodeIndices(*(None if part is None else part[start:end] for part in drawn))  # type: ignore[arg-type]


def merged(tasks: list[EpisodeIndices]) -> list[EpisodeIndices]:
    """Merges single tasks into one batch if all have the same size."""
    shapes = {tuple(None if part is None else part.shape for part in task) for task in tasks}
    if len(shapes) != 1:
        return tasks
    parts = zip(*tasks, strict=True)
    return [EpisodeIndices(*(None if part[0] is None else np.concatenate(part) for part in parts))]  # type: ignore[arg-type]


class EpisodeSampler(Sampler[MetaBatch]):
    """Draws n-way k-shot episodes, all of a meta-batch at once; ``split`` and ``seed`` are part of their keys.

    Classes are drawn without replacement, and their order is their label, so that a label means another class in every
    episode. Samples are drawn without replacement in each class. Support and query are shuffled, so that a position
    reveals no label. The cost per episode does not depend on the number of classes or samples.

    With ``within_groups`` all classes of an episode come from one group (alphabet, superclass), with equal probability
    for each group that has enough classes. With ``turn_classes`` each class is turned by a random number of quarter
    turns in each episode (Finn et al. 2017). ``changes`` are applied to samples after they were read and turned.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        seed: int,
        size: EpisodeSize,
        *,
        shape: TaskShape = FixedShape(),  # noqa: B008 - it has no state
        within_groups: bool = False,
        turn_classes: bool = False,
        changes: Changes = Changes(),  # noqa: B008 - frozen
    ) -> None:
        self.source, self.split, self.seed, self.size, self.shape = source, split, seed, size, shape
        self.turn_classes, self.changes, self.in_memory = turn_classes, changes, source.in_memory
        self._members = self._groups() if within_groups else None

    def fixed(self) -> "EpisodeSampler":
        """The same episodes without augmentation."""
        twin = copy.copy(self)
        twin.changes = self.changes.fixed()
        return twin

    def _groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes sorted by group, with the offset and size of each group that is large enough."""
        if self.source.groups is None:
            raise UserError(f"{self.source.name}: its classes have no groups: leave within_groups out.")
        names, group_of = np.unique(np.asarray(self.source.groups), return_inverse=True)
        sizes = np.bincount(group_of)
        least = self.shape.least_classes(self.size)
        enough = sizes >= least
        if not enough.any():
            largest = names[sizes.argmax()]
            raise UserError(
                f"{self.source.name}: no group has the {least} classes that an episode needs; the largest, "
                f"'{largest}', has {sizes.max()}: lower task.num_ways or set within_groups to false."
            )
        offsets = np.concatenate([[0], sizes.cumsum()[:-1]])
        return group_of.argsort(kind="stable"), offsets[enough], sizes[enough]

    def _keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        keys: NDArray[np.uint64] = stream_keys(self.seed, SPLITS.index(self.split), indices)
        return keys

    def _group(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes sorted by group, and ``(T,)`` offset and size of the group of each task."""
        assert self._members is not None
        order, offsets, sizes = self._members
        group = random_subsets(stream_keys(keys.view(np.int64), Stream.GROUP), len(sizes), 1)[:, 0]
        return order, offsets[group], sizes[group]

    def _classes(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        if self._members is None:
            return random_subsets(keys, len(self.source.sizes), self.size.num_ways)
        order, offsets, sizes = self._group(keys)
        classes: NDArray[np.int64] = order[offsets[:, None] + random_subsets(keys, sizes, self.size.num_ways)]
        return classes

    def _turns(self, keys: NDArray[np.uint64], ways: int) -> NDArray[np.int64] | None:
        if not self.turn_classes:
            return None
        words = random_words(stream_keys(keys.view(np.int64), Stream.TURNS), ways)
        return (words >> np.uint64(62)).astype(np.int64)

    def draw(self, indices: NDArray[np.int64]) -> list[EpisodeIndices]:
        """Episodes by their indices ``(T,)``: one batch of ``T`` tasks, or single tasks if they differ in size."""
        source, (ways, shots, queries) = self.source, self.size
        per_class = shots + queries
        keys = self._keys(indices)
        classes = self._classes(keys)
        # one stream for every class of every episode; what comes later in the episode's own stream starts at 2 * ways
        class_keys = stream_keys(keys.view(np.int64)[:, None], Stream.SAMPLES, np.arange(ways)).reshape(-1)
        drawn = random_subsets(class_keys, source.sizes[classes].reshape(-1), per_class)
        samples = source.order[source.offsets[classes].reshape(-1, 1) + drawn].reshape(-1, ways, per_class)
        support, support_y = self._shuffled(samples[:, :, :shots], keys, 2 * ways)
        query, query_y = self._shuffled(samples[:, :, shots:], keys, 2 * ways + support.shape[1])
        return [EpisodeIndices(support, support_y, query, query_y, classes, keys, self._turns(keys, ways))]

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> MetaBatch:
        """Episodes by their index, the same in any batch or process."""
        return self._serve(self.draw(indices), device)

    def batches(self, indices: Iterable[NDArray[np.int64]], device: torch.device) -> Iterator[MetaBatch]:
        """Draws the episodes of several meta-batches at once: numpy's calls cost more than what they draw."""
        remaining = iter(indices)
        while waiting := list(itertools.islice(remaining, 1)):
            more = _DRAWN_AT_ONCE // max(1, len(waiting[0])) - 1
            waiting += itertools.islice(remaining, max(0, more))
            drawn, start = self.draw(np.concatenate(waiting)), 0
            for end in np.cumsum([len(one) for one in waiting]).tolist():
                part = [tasks_of(drawn[0], start, end)] if len(drawn) == 1 else merged(drawn[start:end])
                yield self._serve(part, device)
                start = end

    def _serve(self, drawn: list[EpisodeIndices], device: torch.device) -> MetaBatch:
        served = [self._episode(one, device) for one in drawn]
        return served[0] if len(served) == 1 else served

    def _episode(self, drawn: EpisodeIndices, device: torch.device) -> Episode:
        support_x, query_x = (self._read(part, drawn, device) for part in ("support", "query"))
        support_y, query_y, classes = (
            torch.from_numpy(y).to(device, non_blocking=True) for y in (drawn.support_y, drawn.query_y, drawn.classes)
        )
        unlabelled_x = self._read("unlabelled", drawn, device) if drawn.unlabelled is not None else None
        return Episode(support_x, support_y, query_x, query_y, classes, unlabelled_x)

    def _read(self, part: str, drawn: EpisodeIndices, device: torch.device) -> Inputs:
        x = read_samples(self.source, torch.from_numpy(getattr(drawn, part)), device)
        if drawn.turns is not None and part != "unlabelled":
            if not isinstance(x, Tensor):
                raise UserError(f"{self.source.name}: rotations turn images, but its samples are texts: leave it out.")
            turns = np.take_along_axis(drawn.turns, getattr(drawn, f"{part}_y"), axis=1)
            x = rotate(x, torch.from_numpy(turns).to(device))
        return self.changes(x, lambda: stream_keys(drawn.keys.view(np.int64), Stream[part.upper()]))

    def _shuffled(
        self, samples: NDArray[np.int64], keys: NDArray[np.uint64], start: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tasks, ways, count = samples.shape
        order = random_permutations(keys, ways * count, start=start)
        flat = samples.reshape(tasks, ways * count)
        # position p of the flat layout belongs to class p // count
        return np.take_along_axis(flat, order, axis=1), order // count


class ShapedSampler(EpisodeSampler):
    """Draws episodes whose ways, shots and queries follow a task shape, one by one since each has its own size."""

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
        starts = np.cumsum(counts, axis=0) - counts
        streams = [stream_keys(key.view(np.int64), one) for one in (Stream.SUPPORT, Stream.QUERY, Stream.UNLABELLED)]
        parts = [
            _shuffled_part(stream, samples, start, count)
            for stream, start, count in zip(streams, starts, counts, strict=True)
        ]
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


class GeneratedSampler(Sampler[MetaBatch]):
    """Serves the tasks of a generator by their index; the ways of ``size`` are ignored.

    If the number of shots varies, it is the same for a block of tasks with consecutive indices, which can then be
    computed together.
    """

    def __init__(self, generator: TaskGenerator, split: str, seed: int, size: EpisodeSize) -> None:
        least = generator.min_shots
        if least is not None and least > size.num_shots:
            raise UserError(
                f"min_shots must be at most num_shots of the task, but is {least} and num_shots is {size.num_shots}."
            )
        self.generator, self.split, self.seed, self.size = generator, split, seed, size

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> MetaBatch:
        """Tasks by their index: one batch, or a list of batches if the numbers of shots differ."""
        shots = self._shots(indices)
        ends = [*np.flatnonzero(np.diff(shots)) + 1, len(indices)]
        made, start = [], 0
        for end in ends:
            made.append(self._made(indices[start:end], int(shots[start]), device))
            start = end
        return made[0] if len(made) == 1 else made

    def _made(self, indices: NDArray[np.int64], shots: int, device: torch.device) -> Episode:
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        return self.generator.generate(keys, shots, self.size.num_shots + self.size.num_queries - shots, device)

    def _shots(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of support samples of each task ``(T,)``."""
        least, most = self.generator.min_shots, self.size.num_shots
        if least is None:
            return np.full(len(indices), most)
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices // _TASKS_OF_A_SIZE)
        extra = random_subsets(stream_keys(keys.view(np.int64), Stream.SHAPE), most - least + 1, 1)[:, 0]
        return least + extra

    def fixed(self) -> "GeneratedSampler":
        """Itself: generated tasks are not augmented."""
        return self
