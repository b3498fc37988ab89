"""Samples whose labels are set aside, and what several sources make together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.data.sources import Source, TensorSource

NO_CLASS = "unlabelled"
"""The one class of samples whose labels are set aside or not known."""
_CHUNK = 2**24  # values that are looked at at once, so that checks need little memory


class Relabelled(Source):
    """The samples of another source with other labels; what is in memory is shared.

    Args:
        base: where the samples are read.
        labels: ``(N,)`` class of each sample; all in one class, :data:`NO_CLASS`, where left out.
        class_names: names of the classes.

    Raises:
        UserError: as :class:`Source`.
    """

    def __init__(
        self, base: Source, labels: NDArray[np.int64] | None = None, class_names: Sequence[str] = (NO_CLASS,)
    ) -> None:
        super().__init__(np.zeros(len(base), np.int64) if labels is None else labels, class_names, base.name)
        self.base, self.in_memory = base, base.in_memory

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.base.sample_shape

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The base's samples."""
        self.base.update_fingerprint(digest)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Reads from the base."""
        return self.base.read(indices, device)


class JoinedSource(Source):
    """Sources one after the other, as one.

    Args:
        parts: of samples of one shape; classes of one name are one class.

    Raises:
        UserError: as :class:`Source`.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        names = list(dict.fromkeys(name for part in parts for name in part.class_names))
        labels = [np.array([names.index(name) for name in part.class_names])[part.labels] for part in parts]
        super().__init__(np.concatenate(labels), names, " and ".join(part.name for part in parts))
        self.parts = tuple(parts)
        self.in_memory = all(part.in_memory for part in parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.parts[0].sample_shape

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The samples of all parts."""
        for part in self.parts:
            part.update_fingerprint(digest)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Reads each sample from its part."""
        flat = indices.flatten().numpy()
        part_of = np.searchsorted(self._starts, flat, side="right") - 1
        places = [np.flatnonzero(part_of == number) for number in range(len(self.parts))]
        read = [
            part.read(torch.from_numpy(flat[place] - start), device)
            for part, place, start in zip(self.parts, places, self._starts[:-1], strict=True)
            if len(place)
        ]
        order = torch.from_numpy(np.concatenate(places).argsort()).to(device)
        samples = torch.cat(read)
        return samples[order].view(*indices.shape, *samples.shape[1:])


def joined(parts: Sequence[Source]) -> Source:
    """Sources as one.

    Args:
        parts: one or more.

    Returns:
        The only one, or all one after the other.
    """
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


class UnlabelledPart(NamedTuple):
    """Samples of a target domain, apart from their labels.

    Attributes:
        source: ``N`` samples of the one class :data:`NO_CLASS`, in an order that no label has a part in.
        withheld: ``(N,)`` names of the samples' classes, ``None`` where they are not known.
    """

    source: Source
    withheld: NDArray[np.str_] | None


def without_labels(source: Source) -> UnlabelledPart:
    """Sets the labels of a source aside.

    Args:
        source: samples whose order owes nothing to their labels.

    Returns:
        The same samples in the same order.
    """
    return UnlabelledPart(Relabelled(source), np.array(source.class_names, np.str_)[source.labels])


def first_not_finite(source: Source) -> int | None:
    """Looks at floating-point samples in memory; bytes are always finite, and files are looked at when decoded.

    Args:
        source: any.

    Returns:
        The first sample that holds NaN or infinity, ``None`` where there is none.
    """
    if isinstance(source, Relabelled):
        return first_not_finite(source.base)
    if isinstance(source, JoinedSource):
        for part, start in zip(source.parts, source._starts[:-1].tolist(), strict=True):
            found = first_not_finite(part)
            if found is not None:
                return int(start + found)
        return None
    if not isinstance(source, TensorSource) or not source.data.is_floating_point():
        return None
    each = max(1, _CHUNK // max(1, source.data[0].numel()))
    for start in range(0, len(source), each):
        finite = source.data[start : start + each].flatten(1).isfinite().all(1)
        if not finite.all():
            return start + int((~finite).int().argmax())
    return None
