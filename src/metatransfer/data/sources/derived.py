"""Sources made of other sources: some of the samples, other labels, several sets as one, rotated images."""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metatransfer.batches import Inputs, Tokens
from metatransfer.data.sources.base import Encoder, Source, read_samples
from metatransfer.errors import UserError

NO_CLASS = "unlabelled"
"""The one class of samples without labels."""


class _Derived(Source):
    """A source whose samples are those of ``bases``, which have samples of one shape."""

    bases: tuple[Source, ...]
    _is_finite = True  # the bases are checked

    def _take_from(self, *bases: Source) -> None:
        self.bases, self.in_memory = bases, all(base.in_memory for base in bases)

    @abstractmethod
    def places(self, indices: NDArray[np.int64]) -> list[tuple[Source, NDArray[np.int64], NDArray[np.int64]]]:
        """Each base that has some of the samples, which of ``indices`` they are, and their indices in the base."""

    @property
    def is_sparse(self) -> bool:
        """Whether all bases are."""
        return all(base.is_sparse for base in self.bases)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.bases[0].sample_shape

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The samples of all bases."""
        for base, _, own in self.places(indices):
            base.update_fingerprint(digest, own)

    def read(self, indices: Tensor, device: torch.device) -> Inputs:
        """Reads each sample from its base."""
        places = self.places(indices.flatten().numpy())
        if len(places) == 1:
            base, _, own = places[0]
            return read_samples(base, torch.from_numpy(own).view(indices.shape), device)
        read = [read_samples(base, torch.from_numpy(own), device) for base, _, own in places]
        order = torch.from_numpy(np.concatenate([rows for _, rows, _ in places]).argsort()).to(device)
        if isinstance(read[0], Tensor):
            samples = torch.cat([one for one in read if isinstance(one, Tensor)])
            return samples[order].view(*indices.shape, *samples.shape[1:])
        ids, mask = (_padded([one[field] for one in read]) for field in (0, 1))
        # the bases may pad with different ids, which a mask of 0 hides
        return Tokens(*(one[order].view(*indices.shape, *one.shape[1:]) for one in (ids, mask)))

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Those of the bases."""
        found = np.zeros(len(indices), np.int64)
        for base, rows, own in self.places(indices):
            lengths = base.lengths(own)
            if lengths is None:
                return None
            found[rows] = lengths
        return found

    def show(self, index: int) -> str | Tensor:
        """The base's sample."""
        base, _, own = self.places(np.array([index]))[0]
        return base.show(int(own[0]))


class View(_Derived):
    """The samples ``indices`` ``(N,)`` of another source, with classes of their own, some of which may have no sample.

    What is in memory is shared.
    """

    _may_lack_classes = True

    def __init__(
        self,
        base: Source,
        indices: NDArray[np.int64],
        targets: ArrayLike,
        class_names: Sequence[str],
        name: str | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets, class_names, base.name if name is None else name, groups)
        self._take_from(base)
        self.indices = indices

    @property
    def base(self) -> Source:
        """The source that the samples are read from."""
        return self.bases[0]

    def places(self, indices: NDArray[np.int64]) -> list[tuple[Source, NDArray[np.int64], NDArray[np.int64]]]:
        """All of them, in the one base."""
        return [(self.base, np.arange(len(indices)), self.indices[indices])]

    def encoded(self, encoder: Encoder) -> Self:
        """A view of the encoded base."""
        twin = copy.copy(self)
        twin._take_from(self.base.encoded(encoder))
        return twin


def subset(base: Source, indices: NDArray[np.int64], class_names: Sequence[str] | None = None) -> View:
    """The samples ``indices`` ``(N,)`` of a source; ``class_names`` renumbers its classes and may add further ones."""
    if class_names is None:
        return View(base, indices, base.targets[indices], base.class_names, groups=base.groups)
    places = {name: place for place, name in enumerate(class_names)}
    new = np.array([places[name] for name in base.class_names], np.int64)
    return View(base, indices, new[base.labels[indices]], class_names)


def of_classes(base: Source, class_names: Sequence[str], name: str) -> View:
    """The samples of some classes, in the order of ``base``; classes are numbered as in ``class_names``."""
    new = np.full(len(base.class_names), -1)
    old = [base.class_names.index(one) for one in class_names]
    new[old] = np.arange(len(old))
    indices = np.flatnonzero(new[base.labels] >= 0)
    groups = [base.groups[place] for place in old] if base.groups is not None else None
    return View(base, indices, new[base.labels[indices]], class_names, name, groups)


class JoinedSource(_Derived):
    """Several sources, concatenated.

    Args:
        bases: sources with samples of one shape; classes with the same name are one class.
        class_names: order of the classes; defaults to that of their first occurrence.
    """

    def __init__(self, bases: Sequence[Source], class_names: Sequence[str] | None = None) -> None:
        names = list(class_names or dict.fromkeys(name for base in bases for name in base.class_names))
        labels = [np.array([names.index(name) for name in base.class_names])[base.labels] for base in bases]
        groups = {name: one for base in bases for name, one in zip(base.class_names, base.groups or (), strict=False)}
        known = [groups[name] for name in names] if all(name in groups for name in names) else None
        super().__init__(np.concatenate(labels), names, " and ".join(base.name for base in bases), known)
        self._take_from(*bases)
        self._starts = np.cumsum([0, *(len(base) for base in bases)])

    def places(self, indices: NDArray[np.int64]) -> list[tuple[Source, NDArray[np.int64], NDArray[np.int64]]]:
        """Those of the bases in turn."""
        base_of = np.searchsorted(self._starts, indices, side="right") - 1
        found = [(base, np.flatnonzero(base_of == place), self._starts[place]) for place, base in enumerate(self.bases)]
        return [(base, rows, indices[rows] - start) for base, rows, start in found if len(rows)]

    def encoded(self, encoder: Encoder) -> "JoinedSource":
        """All bases, encoded."""
        return JoinedSource([base.encoded(encoder) for base in self.bases], self.class_names)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Texts ``(n, ..., L)`` of several sizes, padded with zeros to the largest and concatenated."""
    found = parts[0].new_zeros(
        sum(map(len, parts)), *(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
    )
    start = 0
    for part in parts:
        found[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return found


def joined(parts: Sequence[Source]) -> Source:
    """A single source as it is, several as one."""
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


class RotatedClasses(Source):
    """Every class four times, rotated by 0, 90, 180 and 270 degrees, as Snell et al. 2017 (1703.05175) train Omniglot.

    Class ``4 c + r`` is class ``c`` after ``r`` quarter turns; images are rotated when they are read.

    Args:
        base: images ``(C, H, H)``.

    Raises:
        UserError: samples that are not square images.
    """

    _is_finite = True  # the base is checked

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
        self.base, self.in_memory = base, base.in_memory

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.base.sample_shape

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The base's samples; the rotations follow from the labels."""
        self.base.update_fingerprint(digest, np.unique(indices // 4))

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Reads and rotates."""
        read = read_samples(self.base, indices // 4, device)
        assert isinstance(read, Tensor)
        return rotate(read, (indices % 4).to(device))


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Turns images ``(..., C, H, H)`` counter-clockwise by ``turns`` ``(...)`` quarter turns, if possible in place."""
    flat, number = images.flatten(0, -4), turns.flatten()
    for turn in (1, 2, 3):
        chosen = (number == turn).nonzero().flatten()
        flat[chosen] = torch.rot90(flat[chosen], turn, (-2, -1))
    return flat.view_as(images)


class UnlabelledPart(NamedTuple):
    """Samples of a target domain, separated from their labels.

    Attributes:
        source: ``N`` samples of the one class ``"unlabelled"``, in an order that does not depend on any label.
        withheld (array of str or None): ``(N,)`` names of the samples' classes, ``""`` where unknown;
            ``None`` if none is known.
    """

    source: Source
    withheld: NDArray[np.str_] | None


def without_labels(source: Source) -> UnlabelledPart:
    """Separates samples from their labels; only for sources whose order does not depend on labels."""
    rows = np.arange(len(source))
    names = np.array(source.class_names, np.str_)[source.labels]
    return UnlabelledPart(View(source, rows, np.zeros_like(rows), (NO_CLASS,)), names)
