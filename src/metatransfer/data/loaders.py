"""Iterables that serve episodes to the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metatransfer.batches import MetaBatch, PredictionTask
from metatransfer.data.augment import Augmentation
from metatransfer.data.samplers import TaskSampler


def training_position(trainer: Trainer | None) -> tuple[int, int]:
    """Where training stands: the Trainer's own count survives interruption at any point of a batch.

    Args:
        trainer: the run, ``None`` outside of one.

    Returns:
        The epoch, and the batches done in it.
    """
    if trainer is None or trainer.overfit_batches:  # type: ignore[attr-defined]
        return 0, 0  # the same batches in every epoch, as asked for
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


class EpisodeLoader:
    """Serves one pass of episodes as meta-batches, from wherever the Trainer stands.

    The position (epoch, batches already trained on) is asked of the Trainer when the pass starts, so a run that resumes
    in the middle of an epoch goes on with the next episode; nothing is kept here that could disagree.

    Args:
        sampler: which samples.
        episodes: episodes in a pass, over all processes.
        tasks_per_batch: episodes of a meta-batch, in each process.
        drop_last: leave out a last meta-batch that is not full, so that all processes take as many steps.
        rank: this process.
        world_size: number of processes; their episodes are disjoint.
        position: gives ``(epoch, batches done in it)``; every epoch has episodes of its own.
        device: gives the device on which samples held in memory are gathered.
        augmentation: applied to every sample.
        num_workers: processes that read samples that are not held in memory.
    """

    def __init__(
        self,
        sampler: TaskSampler,
        *,
        episodes: int,
        tasks_per_batch: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        device: Callable[[], torch.device] = lambda: torch.device("cpu"),
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
    ) -> None:
        self.episode_sampler = sampler  # 'sampler' would make Lightning take this for a torch DataLoader
        self.episodes = episodes
        self.tasks_per_batch = tasks_per_batch
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.position = position
        self.device = device
        self.augmentation = augmentation
        self.num_workers = 0 if sampler.in_memory else num_workers

    def __len__(self) -> int:
        stride = self.tasks_per_batch * self.world_size
        if self.drop_last:
            return self.episodes // stride
        # evaluation: this rank's own share, which may be one batch shorter than another's
        return math.ceil(len(range(self.rank, self.episodes, self.world_size)) / self.tasks_per_batch)

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """Indices of the episodes of one meta-batch of this process.

        Args:
            epoch: number of the pass.
            batch: number of the meta-batch in it.

        Returns:
            ``(T,)`` int64.
        """
        within = self.rank + self.world_size * np.arange(
            batch * self.tasks_per_batch, (batch + 1) * self.tasks_per_batch, dtype=np.int64
        )
        return epoch * self.episodes + within[within < self.episodes]

    def __iter__(self) -> Iterator[MetaBatch]:
        epoch, done = self.position()
        batches = [self.indices(epoch, batch) for batch in range(done, len(self))]
        if self.num_workers == 0:
            yield from self.episode_sampler.batches(batches, self.device(), self.augmentation)
            return
        served = _Batches(self.episode_sampler, batches, self.augmentation)
        # the samplers need no seed of a worker: everything follows from the indices
        yield from DataLoader(
            served,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.device().type == "cuda",
            generator=torch.Generator(),  # else its workers' seed is drawn from the random numbers of the training
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: the position is the Trainer's. It tells Lightning that resuming in mid-epoch is safe."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Nothing to load.

        Args:
            state_dict: empty.
        """


class TaskLoader:
    """Serves one task; a list of it would be a list of loaders to Lightning.

    Args:
        task: what to serve.
    """

    def __init__(self, task: PredictionTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PredictionTask]:
        yield self.task


class _Batches(Dataset[MetaBatch]):
    """Meta-batches as items, for worker processes."""

    def __init__(self, sampler: TaskSampler, batches: list[np.ndarray], augmentation: Augmentation | None) -> None:
        self.episode_sampler = sampler
        self.batches = batches
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> MetaBatch:
        return self.episode_sampler.episodes(self.batches[item], torch.device("cpu"), self.augmentation)
