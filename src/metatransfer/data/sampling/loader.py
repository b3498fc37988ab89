"""The one iterable that serves batches to the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metatransfer.data.sampling.sampler import Batch, Sampler


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
    def of(cls, trainer: Trainer | None, *, training: bool = False, on_cpu: bool = False) -> Place:
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
        own = np.arange(batch * self.items_per_batch, (batch + 1) * self.items_per_batch, dtype=np.int64)
        within = self.place.rank + self.place.world_size * own
        found: NDArray[np.int64] = epoch * self.count + within[within < self.count]
        return found

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.place.position()
        batches = [self.indices(epoch, batch) for batch in range(done, len(self))]
        if self.num_workers == 0:
            yield from self.source.batches(batches, self.place.device())
            return
        # the workers need no seed: everything depends on the indices alone
        yield from DataLoader(
            _Batches(self.source, batches),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.place.device().type == "cuda",
            generator=torch.Generator(),  # otherwise the workers' seed is drawn from the global generator
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the Trainer knows the position. With this method, Lightning resumes in mid-epoch without a warning."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Nothing to load."""


class _Batches(Dataset[Batch]):
    """Batches as items, for worker processes."""

    def __init__(self, source: Sampler[Batch], batches: Sequence[NDArray[np.int64]]) -> None:
        self.source, self.indices = source, batches

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Batch:
        return self.source.batch(self.indices[item], torch.device("cpu"))
