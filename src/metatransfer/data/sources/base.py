"""Sources: sets of samples with targets that are read by index."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metatransfer.batches import Inputs
from metatransfer.errors import UserError

_CHUNK = 2**24  # values checked at once, to limit memory


class Encoder(ABC):
    """Turns raw samples into network inputs by rules learned from the training samples, such as a tokenizer.

    Attributes:
        size: vocabulary size; 0 for numeric samples, such as standardised rows of a table.
        shared: whether token ids are independent of the training samples.
    """

    size: int
    shared: bool = False

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""

    @abstractmethod
    def key(self) -> str:
        """A hash of everything that affects what the network sees."""


class Source(ABC):
    """A set of samples with their targets.

    Args:
        targets: ``(N,)`` integer class of each sample, in ``0 .. len(class_names) - 1``; or ``(N, D)`` float targets
            of a regression, without class names.
        class_names: names of the classes.
        name: name of the set in messages, e.g. ``"Glyphs test"``.
        groups: the group of each class (alphabet, superclass), for episodes within one group.

    Attributes:
        sizes: ``(C,)`` samples per class.
        offsets: ``(C,)`` where each class starts in ``order``.
        order: ``(N,)`` sample indices sorted by class.
        in_memory: whether :meth:`read` gathers on the device, in which case worker processes would only slow it down.
        trials: ``(T, S)`` support and ``(T, Q)`` query samples of ``T`` published episodes, which are then served
            instead of random ones.

    Raises:
        UserError: targets of another shape, labels out of range, or a class without samples.
    """

    in_memory: bool = False
    trials: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    _may_lack_classes = False
    _is_finite = False  # whether no sample can be NaN or infinite, so that what is read need not be checked

    def __init__(
        self, targets: ArrayLike, class_names: Sequence[str], name: str, groups: Sequence[str] | None = None
    ) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.groups = tuple(groups) if groups is not None else None
        self.targets: NDArray[Any] = self._checked(np.asarray(targets))
        self.sizes = (
            np.bincount(self.targets, minlength=len(self.class_names)) if self.is_labelled else np.zeros(0, int)
        )
        for index in np.flatnonzero(self.sizes == 0) if not self._may_lack_classes else ():
            raise UserError(f"{name}: class '{self.class_names[index]}' has no samples; remove it or add some.")
        self.offsets = np.concatenate([[0], self.sizes.cumsum()[:-1]])
        self.order = self.targets.argsort(kind="stable") if self.is_labelled else np.arange(len(self.targets))
        if self.groups is not None and len(self.groups) != len(self.class_names):
            raise UserError(
                f"{name}: there are {len(self.groups)} groups for {len(self.class_names)} classes; give one per class."
            )

    def _checked(self, given: NDArray[Any]) -> NDArray[Any]:
        if given.ndim == 2 and given.dtype.kind == "f" and not self.class_names:
            finite = np.isfinite(given).all(1)
            if not finite.all():
                raise UserError(f"{self.name}: the target of sample {int(finite.argmin())} is NaN or infinite: fix it.")
            return given.astype(np.float32)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise UserError(
                f"{self.name}: labels must be one integer per sample, but are {given.dtype} of shape {given.shape}."
            )
        labels = given.astype(np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise UserError(
                f"{self.name}: labels must lie in 0 .. {len(self.class_names) - 1} for {len(self.class_names)} class "
                f"names, but range from {labels.min()} to {labels.max()}."
            )
        return labels

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def is_sparse(self) -> bool:
        """Whether the samples are the rows of a sparse matrix."""
        return False

    @property
    def is_labelled(self) -> bool:
        """Whether the targets are classes."""
        return self.targets.ndim == 1

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(N,)`` class of each sample.

        Raises:
            UserError: the targets are not classes.
        """
        if not self.is_labelled:
            raise UserError(f"{self.name} has numbers as targets, but classes are needed here: give data with classes.")
        return self.targets

    def fingerprint(self) -> str:
        """A hash of the content: equal for equal samples, targets and classes, wherever they are stored."""
        digest = hashlib.sha256()
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update(self.targets.astype("<i8" if self.is_labelled else "<f4").tobytes())
        self.update_fingerprint(digest, np.arange(len(self)))
        return digest.hexdigest()

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """Feeds the samples ``indices`` ``(n,)`` to a hash, in this order; by default as they are read."""
        for index in indices.tolist():
            read = self.read(torch.tensor([index]), torch.device("cpu"))
            for part in [read] if isinstance(read, Tensor) else read:
                digest.update(part.numpy().tobytes())

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``()`` for texts."""

    @abstractmethod
    def read(self, indices: Tensor, device: torch.device) -> Inputs:
        """Reads samples by index.

        Args:
            indices: int64 of any shape, on the CPU.
            device: device of the returned samples.

        Returns:
            ``(*indices.shape, *sample_shape)`` float32, images in [0, 1]; texts as
            :class:`~metatransfer.batches.Tokens`, padded to the longest of them.
        """

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """``(n,)`` lengths of samples that are padded in batches; ``None`` if all samples have one shape."""
        return None

    def show(self, index: int) -> str | Tensor:
        """A sample in a form for display: an image ``(C, H, W)`` in [0, 1], or a sentence."""
        read = self.read(torch.tensor([index]), torch.device("cpu"))
        return _shown(read[0]) if isinstance(read, Tensor) else str(read.ids[0].tolist())

    def encoded(self, encoder: Encoder) -> "Source":
        """The same samples, read through an encoder; sources of numbers need none and return themselves."""
        return self


_Kind = TypeVar("_Kind", bound=Source)


def encoded(source: _Kind, encoder: Encoder | None) -> _Kind:
    """The samples as they are read through an encoder, if there is one."""
    return source if encoder is None else cast(_Kind, source.encoded(encoder))


def read_samples(source: Source, indices: Tensor, device: torch.device) -> Inputs:
    """Reads samples by index, see :meth:`Source.read`.

    Raises:
        UserError: a sample contains NaN or infinity.
    """
    x = source.read(indices, device)
    if isinstance(x, Tensor) and not source._is_finite:
        finite = finite_rows(x.flatten(0, indices.dim() - 1))
        if not finite.all():
            number = int(indices.flatten()[int(finite.argmin())])
            raise UserError(f"{source.name}: sample {number} contains NaN or infinity: fix or remove it.")
    return x


class TensorSource(Source):
    """Samples in memory, kept as one tensor on the training device, where they are gathered by index.

    Args:
        data: ``(N, *shape)``; uint8 images stay uint8 until they are gathered, and are then divided by 255. Rows of a
            sparse matrix become dense when they are gathered.
        targets: ``(N,)`` classes or ``(N, D)`` float targets.
        class_names: names of the classes.
        name: name of the set in messages.
        groups: the group of each class.

    Raises:
        UserError: ``data`` and ``targets`` have different lengths, ``data`` contains NaN or infinity, or the targets
            are not valid for :class:`Source`.
    """

    in_memory = True
    _is_finite = True

    def __init__(
        self,
        data: Tensor,
        targets: ArrayLike,
        class_names: Sequence[str],
        name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets, class_names, name, groups)
        if len(data) != len(self.targets):
            raise UserError(
                f"{name}: there are {len(self.targets)} labels for {len(data)} samples; give one per sample."
            )
        data = data.to_sparse(layout=torch.sparse_coo).coalesce() if data.layout != torch.strided else data
        finite = finite_rows(data)
        if not finite.all():
            raise UserError(f"{name}: sample {int(finite.argmin())} contains NaN or infinity: fix or remove it.")
        self.data = data

    @property
    def is_sparse(self) -> bool:
        """Whether ``data`` is."""
        return self.data.is_sparse

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.data.shape[1:])

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The tensor's type, shape and bytes."""
        digest.update(f"{self.data.dtype} {(len(indices), *self.sample_shape)}".encode())
        for rows in np.array_split(indices, max(1, len(indices) // 1024)):
            chosen = self._rows(torch.from_numpy(rows)).detach().cpu().contiguous()
            digest.update(chosen.view(torch.uint8).numpy().tobytes())

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Gathers on the device; the data moves there on the first call and stays."""
        if self.data.device != device and not self.is_sparse:  # few devices know sparse matrices
            self.data = self.data.to(device)
        # on a CPU twenty times as fast as indexing, which does not copy whole samples at once
        flat = self._rows(indices.flatten()).to(device)
        samples = flat.view(*indices.shape, *self.data.shape[1:])
        if samples.dtype == torch.uint8:
            return samples.to(torch.float32).div_(255)
        return samples.to(torch.float32)

    def _rows(self, numbers: Tensor) -> Tensor:
        rows = self.data.index_select(0, numbers.to(self.data.device, non_blocking=True))
        return rows.to_dense() if rows.is_sparse else rows


def finite_rows(samples: Tensor) -> NDArray[np.bool_]:
    """Mask of the samples without NaN and infinity."""
    if not samples.is_floating_point() or not samples.numel():
        return np.ones(len(samples), dtype=bool)
    if samples.is_sparse:
        wrong = samples.indices()[0][~samples.values().isfinite()]
        return ~np.isin(np.arange(len(samples)), wrong.cpu().numpy())
    each = max(1, _CHUNK // samples[0].numel())
    return torch.cat([part.flatten(1).isfinite().all(1) for part in torch.split(samples, each)]).cpu().numpy()


def _shown(sample: Tensor) -> str | Tensor:
    """An image ``(C, H, W)``, rescaled to [0, 1] if its values lie outside; the first values of anything else."""
    if sample.dim() == 2:
        sample = sample.unsqueeze(0)
    if sample.dim() == 3 and len(sample) in (1, 3):
        low, high = min(0.0, float(sample.min())), max(1.0, float(sample.max()))
        return (sample - low) / (high - low)
    values = ", ".join(f"{value:.4g}" for value in sample.flatten()[:8].tolist())
    return f"{values}{', ...' if sample.numel() > 8 else ''}"
