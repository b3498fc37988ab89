"""Where samples come from: labelled collections that can be read by index."""

from __future__ import annotations

import hashlib
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
        groups: the group of each class (alphabet, superclass), for episodes within one group.

    Attributes:
        in_memory: whether :meth:`read` gathers on the device, so that worker processes would only be in the way.
        sizes: ``(C,)`` samples per class.
        offsets: ``(C,)`` where each class starts in ``order``.
        order: ``(N,)`` sample indices sorted by class.

    Raises:
        UserError: labels out of range, or a class without samples (it is named).
    """

    in_memory = False

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        given = np.asarray(labels)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise UserError(
                f"{name}: labels must be one integer per sample, but came as {given.dtype} of shape {given.shape}."
            )
        self.labels = given.astype(np.int64)
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
        self.groups = tuple(groups) if groups is not None else None
        if self.groups is not None and len(self.groups) != len(self.class_names):
            raise UserError(
                f"{name}: {len(self.class_names)} classes came with {len(self.groups)} groups; give one each."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hash of the content: equal for equal samples, labels and classes, wherever they lie.

        A subclass adds its samples by overriding :meth:`update_fingerprint`.
        """
        digest = hashlib.sha256()
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.astype("<i8").tobytes())
        self.update_fingerprint(digest)
        return digest.hexdigest()

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """Feeds the samples to a hash, in their order; by default every sample as it is read.

        Args:
            digest: takes bytes.
        """
        for index in range(len(self)):
            digest.update(self.read(torch.tensor([index]), torch.device("cpu")).numpy().tobytes())

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
        groups: the group of each class.

    Raises:
        UserError: ``data`` and ``labels`` of different lengths, or as :class:`Source`.
    """

    in_memory = True

    def __init__(
        self,
        data: Tensor,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(labels, class_names, name, groups)
        if len(data) != len(self.labels):
            raise UserError(f"{name}: {len(data)} samples came with {len(self.labels)} labels; they must be as many.")
        self.data = data

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.data.shape[1:])

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The tensor's bytes."""
        digest.update(f"{self.data.dtype} {tuple(self.data.shape)}".encode())
        digest.update(self.data.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Gathers on the device; the data moves there on the first call and stays."""
        if self.data.device != device:
            self.data = self.data.to(device)
        # on a CPU twenty times as fast as indexing, which does not copy whole samples at once
        flat = self.data.index_select(0, indices.to(device, non_blocking=True).flatten())
        samples = flat.view(*indices.shape, *self.data.shape[1:])
        if samples.dtype == torch.uint8:
            return samples.to(torch.float32).div_(255)
        return samples.to(torch.float32)


class RotatedClasses(Source):
    """Every class four times, turned by 0, 90, 180 and 270 degrees, as Snell et al. 2017 (1703.05175) train Omniglot.

    Class ``4 c + r`` is class ``c`` turned ``r`` times; images are turned when they are read.

    Args:
        base: images ``(C, H, H)``.

    Raises:
        UserError: samples that are not square images.
    """

    def __init__(self, base: Source) -> None:
        shape = base.sample_shape
        if len(shape) != 3 or shape[1] != shape[2]:
            raise UserError(f"{base.name}: only square images (C, H, H) can be rotated, but samples are {shape}.")
        turns = range(4)
        super().__init__(
            (4 * base.labels[:, None] + np.arange(4)).reshape(-1),
            [f"{name} turned {90 * turn}" for name in base.class_names for turn in turns],
            base.name,
            [group for group in base.groups for _ in turns] if base.groups is not None else None,
        )
        self.base = base
        self.in_memory = base.in_memory

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.base.sample_shape

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The base's samples."""
        self.base.update_fingerprint(digest)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Reads and turns."""
        return rotate(self.base.read(indices // 4, device), (indices % 4).to(device))


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Turns images counter-clockwise by quarter turns, each by its own number.

    Args:
        images: ``(..., C, H, H)``; changed in place where possible.
        turns: ``(...)`` int64 in 0 .. 3.

    Returns:
        The turned images.
    """
    flat, number = images.flatten(0, -4), turns.flatten()
    for turn in (1, 2, 3):
        chosen = (number == turn).nonzero().flatten()
        flat[chosen] = torch.rot90(flat[chosen], turn, (-2, -1))
    return flat.view_as(images)
