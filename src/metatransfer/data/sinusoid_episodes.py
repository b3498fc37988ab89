"""Regression tasks: sine waves of random amplitude and phase."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metatransfer.batches import Episode
from metatransfer.data.augment import Augmentation
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.samplers import SPLITS, TaskSampler
from metatransfer.functional.random import random_uniforms, stream_keys


class SinusoidEpisodes(EpisodicDataModule):
    r"""The regression tasks of MAML (Finn et al. 2017, 1703.03400, section 5.1): learn a sine wave from a few points.

    .. math:: y = A\sin(x - \varphi), \qquad A\sim U[0.1, 5],\ \varphi\sim U[0, \pi],\ x\sim U[-5, 5]

    Support and query points are float tensors ``(T, S, 1)``; ways play no part. The tasks are generated, so training,
    validation and test have as many as wanted and share none.

    Args:
        num_shots: support points of a task.
        num_queries: query points of a task.
        episodes: everything else is an argument of :class:`EpisodicDataModule`.
    """

    num_targets: ClassVar[int | None] = 1

    def __init__(self, num_shots: int = 10, num_queries: int = 10, **episodes: Any) -> None:  # noqa: ANN401
        super().__init__(num_shots=num_shots, num_queries=num_queries, **episodes)

    def shape(self, split: str) -> dict[str, int]:
        """Shots and queries of a split; a regression has no ways."""
        return {name: value for name, value in super().shape(split).items() if name != "num_ways"}

    def sampler(self, split: str) -> TaskSampler:
        """Generates the tasks of a split."""
        return SinusoidSampler(split, self.seed, **self.shape(split))

    def protocol(self) -> dict[str, Any]:
        """As of the base, without what only classes have."""
        card = super().protocol()
        return {name: value for name, value in card.items() if name not in ("rotations", "within_groups")}


class SinusoidSampler(TaskSampler):
    """Sine waves by their index.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; part of the key.
        seed: part of the key.
        num_shots: support points of a task.
        num_queries: query points of a task.
    """

    def __init__(self, split: str, seed: int, *, num_shots: int, num_queries: int) -> None:
        self.split = split
        self.seed = seed
        self.num_shots = num_shots
        self.num_queries = num_queries

    def episodes(
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> Episode:
        """Generates on the host, in float32; points are not augmented."""
        points = self.num_shots + self.num_queries
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        u = torch.from_numpy(random_uniforms(keys, 2 + points)).to(device)
        amplitude, phase = 0.1 + 4.9 * u[:, :1], math.pi * u[:, 1:2]
        x = 10 * u[:, 2:] - 5
        y = (amplitude * torch.sin(x - phase)).unsqueeze(-1)
        x = x.unsqueeze(-1)
        shots = self.num_shots
        return Episode(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])
