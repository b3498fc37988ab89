"""Samplers, pure functions from item numbers to batches, and the one iterable that serves batches to the Trainer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

Batch = TypeVar("Batch", covariant=True)


class Stream(IntEnum):
    """Purposes of random numbers; each has its own stream."""

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


class Sampler(ABC, Generic[Batch]):
    """Makes batches from the numbers of their items (episodes, samples, steps), the same in any process or order."""

    in_memory: bool = True
    """Whether batches are made on the device, in which case worker processes would only slow it down."""

    @abstractmethod
    def batch(self, indices: NDArray[np.int64], device: torch.device) -> Batch:
        """One batch of the items ``indices`` ``(N,)``, on ``device``."""

    def batches(self, indices: Iterable[NDArray[np.int64]], device: torch.device) -> Iterator[Batch]:
        """Several batches, in order, the same as :meth:`batch` for each."""
        return (self.batch(one, device) for one in indices)


class OneItem(Sampler[Batch]):
    """Serves one existing batch."""

    def __init__(self, item: Batch) -> None:
        self.item = item

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> Batch:
        """The one batch."""
        return self.item


@dataclass(frozen=True)
class Place:
    """The process, position and device of a loader.

    Args:
        rank: rank of this process.
        world_size: number of processes; their items are disjoint.
        position: returns ``(epoch, batches done in it)``; every epoch has its own items.
        device: returns the device on which in-memory samples are gathered.
    """

    rank: int = 0
    world_size: int = 1
    position: Callable[[], tuple[int, int]] = lambda: (0, 0)
    device: Callable[[], torch.device] = lambda: torch.device("cpu")

    @classmethod
    def of(cls, trainer: Trainer | None, *, training: bool = False, on_cpu: bool = False) -> "Place":
        """The place of a Trainer's process."""
        if trainer is None:
            return cls()
        return cls(
            trainer.global_rank,
            trainer.world_size,
            (lambda: _training_position(trainer)) if training else (lambda: (0, 0)),
            lambda: torch.device("cpu") if on_cpu else trainer.strategy.root_device,
        )


def _training_position(trainer: Trainer) -> tuple[int, int]:
    """The epoch and the batches done in it, by the Trainer's count, which is right even after an interruption."""
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        return 0, 0  # the same batches in every epoch
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


class BatchLoader(Generic[Batch]):
    """Serves one pass over a sampler's items in batches, starting at the Trainer's position.

    The position (epoch, batches already trained on) is read from the Trainer when the pass starts, so a run that
    resumes in the middle of an epoch continues with the next item.

    Args:
        source: makes the batches.
        count: number of items of a pass, over all processes.
        batch_size: items per batch, in each process.
        drop_last: drop a last batch that is not full, so that all processes take the same number of steps.
        place: the process, the position and the device.
        num_workers: number of worker processes for samples that are not held in memory.
    """

    def __init__(
        self,
        source: Sampler[Batch],
        count: int,
        batch_size: int,
        *,
        drop_last: bool = False,
        place: Place | None = None,
        num_workers: int = 0,
    ) -> None:
        self.source = source  # 'sampler' would make Lightning take this for a torch DataLoader
        self.count, self.items_per_batch = count, batch_size
        self.drop_last, self.place = drop_last, place or Place()
        self.num_workers = 0 if source.in_memory else num_workers

    def __len__(self) -> int:
        if self.drop_last:
            return self.count // (self.items_per_batch * self.place.world_size)
        # evaluation: the share of this rank, which may be one batch shorter than that of another
        return math.ceil(len(range(self.place.rank, self.count, self.place.world_size)) / self.items_per_batch)

    def indices(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Numbers of the items of one batch of this process."""
        return _share(self.count, self.items_per_batch, self.place.rank, self.place.world_size, epoch, batch)

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.place.position()
        batches = range(done, len(self))
        if self.num_workers == 0:
            yield from self.source.batches((self.indices(epoch, batch) for batch in batches), self.place.device())
            return
        share = self.count, self.items_per_batch, self.place.rank, self.place.world_size, epoch
        # the workers need no seed: everything depends on the indices alone
        yield from DataLoader(
            batches,  # type: ignore[arg-type] # a range serves, too
            batch_size=None,
            collate_fn=partial(_read, self.source, *share),
            num_workers=self.num_workers,
            pin_memory=self.place.device().type == "cuda",
            generator=torch.Generator(),  # otherwise the workers' seed is drawn from the global generator
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the Trainer knows the position. With this method, Lightning resumes in mid-epoch without a warning."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Nothing to load."""


def _share(count: int, size: int, rank: int, world_size: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """Numbers of the items of one batch of a process: of ``count`` items, every ``world_size``-th is its own."""
    start = rank + world_size * size * batch
    numbers = np.arange(start, min(start + world_size * size, count), world_size, dtype=np.int64)
    return epoch * count + numbers


def _read(source: Sampler[Batch], *numbers: int) -> Batch:
    """One batch in a worker process, which knows no Trainer."""
    return source.batch(_share(*numbers), torch.device("cpu"))
