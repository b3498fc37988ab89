"""Tasks that are generated rather than drawn from samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from metatransfer.batches import Episode
from metatransfer.functional.random import Bits


class TaskGenerator(ABC):
    """Generates the tasks of an episodic data module; it stands in the place of a :class:`Source`.

    Attributes:
        num_targets: size of the targets where tasks are regressions, ``None`` for classifications.
    """

    num_targets: int | None = None

    @abstractmethod
    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Tasks, each from its own random stream.

        Args:
            keys: ``(T,)`` one stream for each task, a function of seed, split and index.
            num_shots: support samples of a task (of each class, where it has classes).
            num_queries: query samples.
            device: where the tensors are wanted.

        Returns:
            ``T`` tasks.
        """
