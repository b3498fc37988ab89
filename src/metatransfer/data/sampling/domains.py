"""The samples of several domains, and the infinite streams of training batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import DomainBatch, DomainSamples, LabelledBatch
from metatransfer.data.sampling.augment import Changes, Standardize, apply_transforms
from metatransfer.data.sampling.labelled import Balance, LabelledSampler
from metatransfer.data.sampling.loader import Sampler, Stream
from metatransfer.data.sources import Source
from metatransfer.functional.random import stream_keys

_CHUNK = 1024  # samples that are read at once for statistics


@dataclass
class Domain:
    """One domain, divided.

    Args:
        name: in messages and metrics.
        splits: training, validation and optionally test samples; those of targets without classes.
        labels: ``(N,)`` class of each sample of a split, -1 if unknown.
        key: seed of the domain's random numbers.
        changes: applied to every sample after it was read.
        balance: class balancing of the training samples.
        standardize: applied after ``changes``.
    """

    name: str
    splits: Mapping[str, Source]
    labels: Mapping[str, NDArray[np.int64]]
    key: int
    changes: Changes
    balance: Balance = "none"
    standardize: Standardize | None = None

    @property
    def in_memory(self) -> bool:
        """Whether all its samples are in memory."""
        return all(split.in_memory for split in self.splits.values())

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample after the domain's transform."""
        x = self.splits["train"].read(torch.tensor([0]), torch.device("cpu"))
        assert isinstance(x, Tensor)
        return tuple(apply_transforms(self.changes.transform, x).shape[1:])

    def all_changes(self, *, training: bool) -> Changes:
        """What is applied to training or evaluation samples."""
        extra = () if self.standardize is None else (self.standardize,)
        return Changes(self.changes.augmentation if training else None, (*self.changes.transform, *extra))

    def sampler(self, split: str, *, training: bool = False) -> LabelledSampler:
        """The sampler of a split; with ``training`` augmented, balanced and shuffled in every pass."""
        changes = self.all_changes(training=training)
        return LabelledSampler(self.splits[split], self.key, changes, shuffled=training, balance=self.balance)

    def chunks(self) -> Iterator[Tensor]:
        """The training samples in order, without augmentation, in chunks ``(n, *shape)``."""
        sampler = self.sampler("train")
        for start in range(0, len(sampler), _CHUNK):
            places = np.arange(start, min(start + _CHUNK, len(sampler)))
            yield _tensor(sampler.batch(places, torch.device("cpu")))


def _tensor(batch: LabelledBatch) -> Tensor:
    assert isinstance(batch.x, Tensor)  # domains have no texts
    return batch.x


def domain_key(seed: int, side: int, place: int) -> int:
    """The seed of a domain's own random numbers: two domains of one size are shuffled differently."""
    return int(stream_keys(seed, Stream.CLASS_BATCHES, side, place).view(np.int64))


@dataclass
class Side:
    """The sources, or the targets, in order."""

    domains: Sequence[Domain]

    def starts(self, split: str) -> NDArray[np.int64]:
        """``(D + 1,)`` number of the first sample of each domain in a split, then the total number of samples."""
        sizes = [len(one.splits[split]) if split in one.splits else 0 for one in self.domains]
        starts: NDArray[np.int64] = np.cumsum([0, *sizes])
        return starts

    def labels(self, split: str) -> NDArray[np.int64]:
        """``(N,)`` classes of all samples of a split in the order of their numbers, -1 if unknown."""
        found = [one.labels[split] for one in self.domains if split in one.splits]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def place(self, split: str, number: int) -> tuple[Domain, int]:
        """The domain of the sample ``number``, and its number in that domain."""
        starts = self.starts(split)
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return self.domains[place], number - int(starts[place])


class SideStream:
    """An infinite stream of the training samples of one side: repeated passes over each domain, each in a new order.

    Batch ``b`` takes positions ``b * B`` to ``(b + 1) * B - 1`` of a sequence in which the domains alternate, so that
    their shares of a batch differ by at most one sample. Position ``i`` of a domain is sample ``i % N`` of its pass
    ``i // N``. A batch is thus a pure function of its number, and no sample occurs twice in a pass.
    """

    def __init__(self, side: Side, batch_size: int) -> None:
        self.samplers = [domain.sampler("train", training=True) for domain in side.domains]
        self.starts, self.batch_size = side.starts("train"), batch_size

    def places(self, batch: int) -> list[NDArray[np.int64]]:
        """The positions of each domain that a batch takes."""
        count, first = len(self.samplers), batch * self.batch_size
        last = first + self.batch_size
        # how many of the positions before 'first' and 'last' belong to this domain
        return [
            np.arange((first - place + count - 1) // count, (last - place + count - 1) // count)
            for place in range(count)
        ]

    def batch(self, batch: int, device: torch.device) -> DomainSamples:
        """The ``batch_size`` samples of a batch by its number, with the labels of those that have one."""
        parts = []
        for place, rows in enumerate(self.places(batch)):
            sampler = self.samplers[place]
            for own in np.split(rows, np.flatnonzero(np.diff(rows // len(sampler))) + 1):
                if len(own):
                    part = sampler.batch(own, device)
                    parts.append(_of_domain(part, place, int(self.starts[place])))
        return _together(parts)


class DomainBatchSampler(Sampler[DomainBatch]):
    """Training batches by their number."""

    def __init__(self, sources: SideStream, targets: SideStream) -> None:
        self.sources, self.targets = sources, targets
        self.in_memory = all(sampler.in_memory for side in (sources, targets) for sampler in side.samplers)

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> DomainBatch:
        """A training batch, without target labels; ``indices`` ``(1,)`` is its number over all processes."""
        source, target = (side.batch(int(indices[0]), device) for side in (self.sources, self.targets))
        return DomainBatch(source.x, source.y, target.x, source.number, target.number, source.domain, target.domain)


class DomainSampleSampler(Sampler[DomainSamples]):
    """The samples of one side and split, or of the domain at position ``only``, in order or in a fixed random order.

    Labels that are not ``shown`` are -1.
    """

    def __init__(self, side: Side, split: str, *, shown: bool, only: int | None = None, shuffled: bool = False) -> None:
        wanted = range(len(side.domains)) if only is None else (only,)
        self.places = [place for place in wanted if split in side.domains[place].splits]
        self.samplers = [side.domains[place].sampler(split) for place in self.places]
        self.in_memory = all(sampler.in_memory for sampler in self.samplers)
        labels = [side.domains[place].labels[split] for place in self.places]
        self.labels = labels if shown else [np.full_like(one, -1) for one in labels]
        self.firsts = [int(side.starts(split)[place]) for place in self.places]
        self._starts = np.cumsum([0, *(len(sampler) for sampler in self.samplers)])
        self._order = np.random.default_rng(0).permutation(len(self)) if shuffled else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> DomainSamples:
        """Samples by their positions, domain after domain."""
        parts = []
        indices = indices if self._order is None else self._order[indices]
        for row, sampler in enumerate(self.samplers):
            inside = (indices >= self._starts[row]) & (indices < self._starts[row + 1])
            if inside.any():
                own = indices[inside] - self._starts[row]
                y = torch.from_numpy(self.labels[row][own]).to(device, non_blocking=True)
                part = sampler.batch(own, device)._replace(y=y)
                parts.append(_of_domain(part, self.places[row], self.firsts[row]))
        return _together(parts)


def _of_domain(part: LabelledBatch, place: int, start: int) -> DomainSamples:
    number = part.number
    assert number is not None
    return DomainSamples(_tensor(part), part.y, number + start if start else number, torch.full_like(number, place))


def _together(parts: Sequence[DomainSamples]) -> DomainSamples:
    if len(parts) == 1:
        return parts[0]
    return DomainSamples(*(torch.cat(same) for same in zip(*parts, strict=True)))
