"""Where samples come from: labelled collections that can be read by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metatransfer.errors import UserError


class Source(ABC):
    """A labelled set of samples.

    Args:
        labels: ``(N,)`` class of each sample, in ``0 .. len(class_names) - 1``; every class occurs.
        class_names: names of the classes.
        name: how to call the set in messages, e.g. ``"Glyphs test"``.

    Attributes:
        sizes: ``(C,)`` samples per class.
        offsets: ``(C,)`` where each class starts in ``order``.
        order: ``(N,)`` sample indices sorted by class.

    Raises:
        UserError: labels out of range, or a class without samples (it is named).
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], name: str) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.name = name
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise UserError(
                f"{name}: labels must lie in 0 .. {len(self.class_names) - 1} for {len(self.class_names)} class names, "
                f"but range from {self.labels.min()} to {self.labels.max()}."
            )
        self.sizes = np.bincount(self.labels, minlength=len(self.class_names))
        for index in np.flatnonzero(self.sizes == 0):
            raise UserError(f"{name}: class '{self.class_names[index]}' has no samples; remove it or add some.")
        self.offsets = np.concatenate([[0], self.sizes.cumsum()[:-1]])
        self.order = self.labels.argsort(kind="stable")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @abstractmethod
    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Samples by index.

        Args:
            indices: int64 of any shape.
            device: where the samples are wanted.

        Returns:
            ``(*indices.shape, *sample_shape)`` float32; images in [0, 1].
        """


class TensorSource(Source):
    """Samples that fit in memory, kept as one tensor on the device that trains, and gathered there by index.

    Args:
        data: ``(N, *shape)``; uint8 images stay uint8 until they are gathered, and are then divided by 255.
        labels: ``(N,)`` class of each sample.
        class_names: names of the classes.
        name: how to call the set in messages.

    Raises:
        UserError: ``data`` and ``labels`` of different lengths, or as :class:`Source`.
    """

    def __init__(self, data: Tensor, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], name: str) -> None:
        super().__init__(labels, class_names, name)
        if len(data) != len(self.labels):
            raise UserError(f"{name}: {len(data)} samples came with {len(self.labels)} labels; they must be as many.")
        self.data = data

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.data.shape[1:])

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Gathers on the device; the data moves there on the first call and stays."""
        if self.data.device != device:
            self.data = self.data.to(device)
        samples = self.data[indices.to(device, non_blocking=True)]
        if samples.dtype == torch.uint8:
            return samples.to(torch.float32).div_(255)
        return samples.to(torch.float32)
