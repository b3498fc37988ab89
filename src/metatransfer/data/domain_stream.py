"""The samples of several domains, and the endless streams that they are drawn from in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import DomainBatch, DomainSamples, LabelledBatch
from metatransfer.data.augment import Augmentation, apply_transforms
from metatransfer.data.feature_transforms import Standardize
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.labelled_sampler import LabelledSampler, Split
from metatransfer.data.samplers import Stream, TaskSampler
from metatransfer.functional.random import stream_keys

_CHUNK = 1024  # samples that are read at once for statistics


class Domain:
    """One domain, divided.

    Args:
        name: the user's.
        data: whose transform, augmentation and balance hold.
        splits: training, validation and test, where there are; those of a target know no classes.
        labels: ``(N,)`` class of each sample of a split, -1 where it is not known.
        key: of the domain's random numbers.

    Attributes:
        standardize: applied after the domain's own transform, ``None`` where nothing is.
    """

    def __init__(
        self,
        name: str,
        data: LabelledDataModule,
        splits: Mapping[str, Split],
        labels: Mapping[str, NDArray[np.int64]],
        key: int,
    ) -> None:
        self.name, self.data, self.splits, self.labels, self.key = name, data, dict(splits), dict(labels), key
        self.standardize: Standardize | None = None

    @property
    def in_memory(self) -> bool:
        """Whether all its samples are."""
        return all(split.source.in_memory for split in self.splits.values())

    def sampler(self, split: str, *, training: bool = False) -> LabelledSampler:
        """What gathers its samples.

        Args:
            split: which.
            training: whether every pass has an order of its own, and ``balance`` holds.

        Returns:
            A sampler whose random numbers are the domain's own.
        """
        transforms = [*self.data.transform, *([self.standardize] if self.standardize is not None else [])]
        return LabelledSampler(
            self.splits[split],
            self.key,
            partial(apply_transforms, transforms) if transforms else None,
            shuffled=training,
            balance=self.data.balance if training else "none",
        )

    def chunks(self) -> Iterator[Tensor]:
        """The training samples in their order, without augmentation.

        Yields:
            ``(n, *shape)``.
        """
        sampler = self.sampler("train")
        for start in range(0, len(sampler), _CHUNK):
            places = np.arange(start, min(start + _CHUNK, len(sampler)))
            x = sampler.episodes(places, torch.device("cpu")).x
            assert isinstance(x, Tensor)
            yield x


def domain_key(seed: int, side: int, place: int) -> int:
    """The seed of a domain's own random numbers: two domains of one size are shuffled differently.

    Args:
        seed: of the domain.
        side: 0 for sources, 1 for targets.
        place: which of them.

    Returns:
        64 bits as a signed number.
    """
    return int(stream_keys(seed, Stream.CLASS_BATCHES, side, place).view(np.int64))


class Side:
    """The sources, or the targets.

    Args:
        domains: in their order.
    """

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.domains = tuple(domains)

    def starts(self, split: str) -> NDArray[np.int64]:
        """Number of the first sample of each domain, and at last how many samples there are.

        Args:
            split: which.

        Returns:
            ``(D + 1,)``; a domain without this split has no samples.
        """
        sizes = [len(one.splits[split]) if split in one.splits else 0 for one in self.domains]
        starts: NDArray[np.int64] = np.cumsum([0, *sizes])
        return starts

    def size(self, split: str) -> int:
        """How many samples a split has.

        Args:
            split: which.

        Returns:
            Of all domains.
        """
        return int(self.starts(split)[-1])

    def labels(self, split: str) -> NDArray[np.int64]:
        """Classes of all samples of a split, in the order of their numbers.

        Args:
            split: which.

        Returns:
            ``(N,)``, -1 where a class is not known.
        """
        found = [one.labels[split] for one in self.domains if split in one.splits]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def place(self, split: str, number: int) -> tuple[Domain, int]:
        """Where a sample is.

        Args:
            split: which.
            number: among the samples of this side.

        Returns:
            Its domain, and its number in there.
        """
        starts = self.starts(split)
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return self.domains[place], number - int(starts[place])


class SideStream:
    """Endless training samples of one side: each domain is passed through again and again, each time in a new order.

    Batch ``b`` takes the places ``b * B`` to ``(b + 1) * B - 1`` of a row in which the domains take turns, so that its
    shares differ by one sample at most; a domain's place ``i`` is sample ``i % N`` of its pass ``i // N``. So a batch
    is a pure function of its number: no sample comes twice in a pass, whatever the sizes.

    Args:
        side: whose training samples.
        batch_size: samples of a batch.
    """

    def __init__(self, side: Side, batch_size: int) -> None:
        self.samplers = [domain.sampler("train", training=True) for domain in side.domains]
        self.augmentations: list[Augmentation | None] = [domain.data.augmentation for domain in side.domains]
        self.starts, self.batch_size = side.starts("train"), batch_size

    def places(self, batch: int) -> list[NDArray[np.int64]]:
        """Which places of the domains' rows a batch takes.

        Args:
            batch: its number.

        Returns:
            For each domain places, one after the other.
        """
        count, first = len(self.samplers), batch * self.batch_size
        last = first + self.batch_size
        # how many of the places before 'first' and 'last' are this domain's
        return [
            np.arange((first - place + count - 1) // count, (last - place + count - 1) // count)
            for place in range(count)
        ]

    def batch(self, batch: int, device: torch.device) -> DomainSamples:
        """Samples, with the labels of what has any.

        Args:
            batch: its number.
            device: where the tensors are wanted.

        Returns:
            ``batch_size`` samples.
        """
        parts = []
        for place, rows in enumerate(self.places(batch)):
            sampler = self.samplers[place]
            for own in np.split(rows, np.flatnonzero(np.diff(rows // len(sampler))) + 1):
                if len(own):
                    part = sampler.episodes(own, device, self.augmentations[place])
                    parts.append(_of_domain(part, place, int(self.starts[place])))
        return _together(parts)


class DomainBatchSampler(TaskSampler):
    """Training batches by their number; not episodes, but served in the same way.

    Args:
        sources: samples with labels.
        targets: samples without.
    """

    def __init__(self, sources: SideStream, targets: SideStream) -> None:
        self.sources, self.targets = sources, targets

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether all domains are."""
        return all(sampler.in_memory for side in (self.sources, self.targets) for sampler in side.samplers)

    def episodes(  # type: ignore[override]
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> DomainBatch:
        """A training batch.

        Args:
            indices: ``(1,)`` its number, over all processes.
            device: where the tensors are wanted.
            augmentation: none: every domain has its own.

        Returns:
            The batch; labels of targets are nowhere in it.
        """
        source, target = (side.batch(int(indices[0]), device) for side in (self.sources, self.targets))
        return DomainBatch(
            source.x, source.y, target.x, source.number, target.number, source.domain, target.domain
        )  # fmt: skip


class DomainSampleSampler(TaskSampler):
    """The samples of one side and split in their order.

    Args:
        side: whose.
        split: which.
        shown: whether labels are served; -1 in their place where they are not.
        only: the one domain that is wanted; all where left out.
        shuffled: whether they come in an order that says nothing, always the same one.
    """

    def __init__(self, side: Side, split: str, *, shown: bool, only: int | None = None, shuffled: bool = False) -> None:
        wanted = range(len(side.domains)) if only is None else (only,)
        self.places = [place for place in wanted if split in side.domains[place].splits]
        self.samplers = [side.domains[place].sampler(split) for place in self.places]
        labels = [side.domains[place].labels[split] for place in self.places]
        self.labels = labels if shown else [np.full_like(one, -1) for one in labels]
        self.firsts = [int(side.starts(split)[place]) for place in self.places]
        self._starts = np.cumsum([0, *(len(sampler) for sampler in self.samplers)])
        self._order = np.random.default_rng(0).permutation(len(self)) if shuffled else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether all domains are."""
        return all(sampler.in_memory for sampler in self.samplers)

    def episodes(  # type: ignore[override]
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> DomainSamples:
        """Samples by their places, domain after domain.

        Args:
            indices: ``(N,)``.
            device: where the tensors are wanted.
            augmentation: none.

        Returns:
            The samples.
        """
        parts = []
        indices = indices if self._order is None else self._order[indices]
        for row, sampler in enumerate(self.samplers):
            inside = (indices >= self._starts[row]) & (indices < self._starts[row + 1])
            if inside.any():
                own = indices[inside] - self._starts[row]
                y = torch.from_numpy(self.labels[row][own]).to(device, non_blocking=True)
                part = sampler.episodes(own, device)._replace(y=y)
                parts.append(_of_domain(part, self.places[row], self.firsts[row]))
        return _together(parts)


def _of_domain(part: LabelledBatch, place: int, start: int) -> DomainSamples:
    x, y, number = part
    assert isinstance(x, Tensor)
    assert number is not None
    return DomainSamples(x, y, number + start if start else number, torch.full_like(number, place))


def _together(parts: Sequence[DomainSamples]) -> DomainSamples:
    if len(parts) == 1:
        return parts[0]
    return DomainSamples(*(torch.cat(same) for same in zip(*parts, strict=True)))
