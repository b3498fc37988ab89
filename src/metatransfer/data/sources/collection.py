"""The interface of a collection, which describes the samples and knows no data module; names of splits and classes."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.data.sources.base import Encoder, Source
from metatransfer.data.sources.derived import UnlabelledPart, without_labels
from metatransfer.errors import UserError
from metatransfer.functional.random import Bits

_Words: TypeAlias = Sequence[str] | NDArray[np.str_]
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What each split may be called in a user's data."""


class TaskGenerator(ABC):
    """Generates the tasks of an episodic data module, in place of a :class:`Source`.

    Attributes:
        num_targets: size of the targets of regression tasks, ``None`` for classification.
        min_shots: smallest number of support samples if it varies between tasks: the number is then between this and
            the configured one, and all other samples are queries; ``None`` if it does not vary.
    """

    num_targets: int | None = None
    min_shots: int | None = None

    @abstractmethod
    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Generates tasks, each from its own random stream.

        Args:
            keys: ``(T,)`` one stream per task, a function of seed, split and index.
            num_shots: support samples per task (per class, if it has classes).
            num_queries: query samples.
            device: device of the returned tensors.
        """


class Collection(ABC):
    """Data that can be served as episodes, as labelled batches or as a domain.

    A subclass must define :meth:`parts`; the other methods have defaults::

        class Mine(Collection):
            def parts(self):
                return {"all": TensorSource(x, y, ["cat", "dog"], "mine")}

    Attributes:
        divided_by: how the parts differ, if this is known without opening them: ``"class"`` if each part has its own
            classes, ``"sample"`` if all have the same. With ``"class"`` a server opens only the parts that a run needs.
        rotations: default of ``Processing.rotations``, by split.
        of_texts: whether samples are texts, which cannot be augmented, transformed or rotated.
        within_groups: default of ``Task.within_groups``.
    """

    divided_by: Literal["class", "sample"] | None = None
    rotations: Mapping[str, Literal["none", "classes", "per_class"]] = {}
    of_texts: bool = False
    within_groups: bool = False

    @abstractmethod
    def parts(self) -> Mapping[str, Source | TaskGenerator]:
        """The samples: ``{"all": source}`` if undivided, or ``"train"`` and optionally ``"val"`` and ``"test"``.

        A :class:`LazyParts` opens each part when it is first used.
        """

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples separated from their labels, for a target domain, divided as in :meth:`parts`.

        Override it if samples may come without labels, or if :meth:`parts` sorts them by label: nothing that a target
        is trained or validated on may depend on its labels.

        Raises:
            UserError: the tasks are generated and have no samples.
        """
        found: dict[str, UnlabelledPart] = {}
        for name, source in self.opened().items():
            if not isinstance(source, Source):
                raise UserError(f"{type(self).__name__} generates tasks and has no samples for a domain.")
            found[name] = without_labels(source)
        return found

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """Samples to label and their names (``<label>/<file>`` for examples): of a path, image files, or texts."""
        raise UserError(f"{type(self).__name__} cannot read files to label ('{path}'): leave predict out.")

    def convert(self, item: Any) -> Tensor:  # noqa: ANN401
        """One raw sample, such as a PIL image, as ``sample_shape`` float32, images in [0, 1], or an error."""
        raise UserError(f"{type(self).__name__} cannot convert image files to its samples: give tensors.")

    def encoder(self, training: Source) -> Encoder | None:
        """The encoder of texts or table rows, built from the training samples; ``None`` if none is needed."""
        return None

    def encoder_from(self, state: Mapping[str, Any]) -> Encoder | None:
        """The encoder of a checkpoint, from :meth:`Encoder.state`; ``None`` if samples need none."""
        return None

    def protocol(self) -> dict[str, Any]:
        """What to report with every result on this data, e.g. checksums; may name the ``split``."""
        return {}

    def prepare(self) -> None:  # noqa: B027 - most have nothing to download
        """Downloads what may be downloaded; called in one process."""

    @cached_property
    def skipped(self) -> dict[str, int]:
        """Number of samples left out, by part; filled by :meth:`parts`."""
        return {}

    def opened(self) -> Mapping[str, Source | TaskGenerator]:
        """The result of :meth:`parts`, opened once and checked."""
        return self._checked_parts

    @cached_property
    def _checked_parts(self) -> Mapping[str, Source | TaskGenerator]:
        parts = self.parts()
        names = list(map(str, parts)) if isinstance(parts, Mapping) else [type(parts).__name__]
        if set(names) - {"all", *SPLITS} or ("all" in names) == ("train" in names):
            raise UserError(
                f"{type(self).__name__}.parts must return {{'all': source}}, or sources for 'train' and optionally "
                f"'val' and 'test', but returned {', '.join(names) or 'nothing'}."
            )
        return parts


class LazyParts(Mapping[str, Source]):
    """Parts that are opened when they are first used.

    Args:
        open_part: returns the source of a part, given its name.
        names: names of the parts.
    """

    def __init__(self, open_part: Callable[[str], Source], names: Sequence[str]) -> None:
        self._open, self._names = cache(open_part), tuple(names)

    def __getitem__(self, name: str) -> Source:
        if name not in self._names:
            raise KeyError(name)
        return self._open(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one opens the part to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def split_of(word: str) -> str | None:
    """The split that a word names: ``"Validation"``, ``"dev_set"`` are ``"val"``; ``None`` for any other word."""
    plain = re.sub(r"^seg[_-]|[_ -]?(set|images)$", "", word.strip().lower())
    return next((split for split, words in SPLIT_NAMES.items() if plain in words), None)


def natural_order(names: _Words) -> list[str]:
    """The different names, sorted: whole numbers by their value, anything else as text."""
    unique = sorted(set(map(str, names)))  # not by NumPy, which drops NUL from the end of a text
    if all(name.removeprefix("-").isdecimal() and name.isascii() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return unique


def numbered(labels: _Words) -> tuple[NDArray[np.int64], list[str]]:
    """Labels as numbers: ``(N,)`` places in the class names, and the class names in natural order."""
    names = natural_order(labels)
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[str(label)] for label in labels], np.int64), names


def group_of_classes(labels: _Words, groups: _Words | None, names: Sequence[str], where: str) -> list[str] | None:
    """The group of each class in ``names``, from the class ``(N,)`` and the group ``(N,)`` of each sample."""
    if groups is None:
        return None
    found: dict[str, str] = {}
    for name, group in sorted({(str(label), str(group)) for label, group in zip(labels, groups, strict=True)}):
        if found.setdefault(name, group) != group:
            raise UserError(
                f"{where}: class '{name}' is in the groups '{found[name]}' and '{group}', but all samples of a class "
                "must be in one: fix the groups, or leave them out."
            )
    return [found[name] for name in names]
