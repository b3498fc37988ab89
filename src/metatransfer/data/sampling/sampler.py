"""Samplers: pure functions from item numbers to batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

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

    @property
    def in_memory(self) -> bool:
        """Whether batches are made on the device, in which case worker processes would only slow it down."""
        return True

    @abstractmethod
    def batch(self, indices: NDArray[np.int64], device: torch.device) -> Batch:
        """One batch of the items ``indices`` ``(N,)``, on ``device``."""

    def batches(self, indices: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[Batch]:
        """Several batches, in order.

        Yields:
            The same as :meth:`batch` for each.
        """
        for one in indices:
            yield self.batch(one, device)


class OneItem(Sampler[Batch]):
    """Serves one existing batch."""

    def __init__(self, item: Batch) -> None:
        self.item = item

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> Batch:
        """The one batch."""
        return self.item
