"""Episodes of arrays: files of numpy, torch and safetensors, or tensors at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice, did_you_mean
from metatransfer.data.array_files import ArrayFile, open_arrays
from metatransfer.data.division import (
    SPLIT_NAMES,
    RandomDivision,
    classes_of_splits,
    group_of_classes,
    natural_order,
    numbered,
    split_of,
)
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images import ON_BAD_SAMPLE, ImageLook, OnBadSample
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

_SAMPLES = ("x", "X", "data", "images")
_LABELS = ("y", "Y", "labels", "targets")
_CHUNK = 2**24  # values that are looked at at once, so that checks need little memory


class ArrayEpisodes(EpisodicDataModule):
    """Arrays of samples and labels, from a file or from Python.

    ============================ ==============================================================================
    file                         what it holds
    ============================ ==============================================================================
    ``.npz``                     arrays by name, as ``numpy.savez`` writes them
    ``.npy``                     the samples, with the labels in a file of their own (``labels_path``)
    ``.pt``, ``.pth``            a dictionary of tensors, or the pair (samples, labels)
    ``.safetensors``             tensors by name; needs the package safetensors
    ============================ ==============================================================================

    Nothing in them is run: Python objects are refused. Samples are called ``x`` (or ``X``, ``data``, ``images``) and
    labels ``y`` (or ``Y``, ``labels``, ``targets``). Which class belongs to which split is told by, in this order,

    - the names ``x_train``, ``y_train``, ``x_val``, ``y_val``, ``x_test``, ``y_test`` (or ``train_x``, ...);
    - an array ``split``, with ``train``, ``val`` or ``test`` for each sample;
    - nothing: the classes are divided at random, by ``split_seed``, each split getting at least the classes of one
      episode.

    Samples ``(N, *shape)`` of any shape become float32. uint8 stays uint8 in memory and is divided by 255 when read;
    other numbers are taken as they are. Labels are whole numbers or texts. The remaining arguments are those of
    :class:`EpisodicDataModule`::

        lightning fit --config configs/protonet.yaml --data ArrayEpisodes --data.path FILE.npz --data.num_ways 5

    Args:
        path: the file.
        labels_path: labels to a ``.npy`` file of samples.
        x: name of the samples, where it is none of the above.
        y: name of the labels, where it is none of the above.
        split: name of the array with the split of each sample.
        groups: name of the array with the group of each sample (alphabet, superclass, patient); all samples of a class
            have the same.
        channels_last: whether samples are images ``(H, W, C)``, to become ``(C, H, W)``. Without it they are taken for
            such where they have three axes, the last of size 1 or 3 and the first of neither; and uint8 samples
            ``(H, W)`` become ``(1, H, W)``. ``false`` leaves all as they are.
        split_seed: which random division of the classes, where they come undivided.
        val_fraction: part of the classes for validation, where they come undivided.
        test_fraction: part of the classes for the test, where they come undivided.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out and count samples with NaN or infinity, and classes that
            have no others.
        **episodes: arguments of :class:`EpisodicDataModule`.

    Attributes:
        skipped: samples left out, for each split that was opened.

    Raises:
        UserError: fractions that leave no training classes, or an unknown ``on_bad_sample``.
    """

    def __init__(
        self,
        path: str,
        labels_path: str | None = None,
        x: str | None = None,
        y: str | None = None,
        split: str = "split",
        groups: str = "groups",
        channels_last: bool | None = None,
        split_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        on_bad_sample: OnBadSample = "error",
        **episodes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**episodes)
        check_choice("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        self.path, self.labels_path = path, labels_path
        self.names = {"x": x, "y": y, "split": split, "groups": groups}
        self.channels_last = channels_last
        self.division = RandomDivision(split_seed, val_fraction, test_fraction)
        self.on_bad_sample = on_bad_sample
        self.skipped: dict[str, int] = {}
        self._given: ArrayFile | None = None
        self._content: _Content | None = None

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor | Sequence[str],
        *,
        split: Sequence[str] | NDArray[np.str_] | None = None,
        groups: ArrayLike | Tensor | Sequence[str] | None = None,
        name: str = "arrays",
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """Episodes of arrays or tensors at hand; the command line takes files.

        Args:
            x: ``(N, *shape)`` samples.
            y: ``(N,)`` labels, whole numbers or texts.
            split: ``(N,)`` ``"train"``, ``"val"`` or ``"test"``; without it classes are divided at random.
            groups: ``(N,)`` group of each sample, the same for all samples of a class.
            name: how to call them in messages.
            **options: arguments of the class, such as ``num_ways`` and ``group_by``; none that name files.

        Returns:
            The data module.

        Raises:
            UserError: an option that only files have.
        """
        for option in ("path", "labels_path"):
            if option in options:
                raise UserError(f"from_arrays takes no {option}: leave it out, or use {cls.__name__}(path=...).")
        data = cls(path=name, **options)
        given = {"x": x, "y": y, "split": split, "groups": groups}
        data._given = ArrayFile(name, {key: _keep(value) for key, value in given.items() if value is not None})
        return data

    def setup(self, stage: str | None = None) -> None:
        """As of the base; what is read for several splits is read once.

        Args:
            stage: see :meth:`EpisodicDataModule.setup`.
        """
        super().setup(stage)
        if self._content is not None:
            self._content.forget_samples()  # the splits hold copies of their own

    def source(self, split: str) -> TensorSource:
        """The samples of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A source in memory, its classes named by their labels.

        Raises:
            UserError: no such split, samples or labels that cannot be used, or ``group_by`` without groups.
        """
        content = self._opened()
        classes = self._classes(content)
        if split not in classes:
            raise UserError(f"{content.where} has no samples for {split}, only for {', '.join(classes)}: add some.")
        members = np.isin(content.labels, classes[split])
        if content.splits is not None:
            members &= content.splits == split
        name, samples, offset = content.samples(split)
        rows = np.flatnonzero(members) - offset
        good = _finite(samples, rows)
        if not good.all() and self.on_bad_sample == "error":
            more = f", {(~good).sum()} here" if (~good).sum() > 1 else ""
            raise UserError(
                f"{content.where}: sample {rows[~good][0]} of '{name}' holds NaN, infinity or more than float32 can: "
                f"mend it, or set on_bad_sample=skip to leave out and count what cannot be used{more}."
            )
        self.skipped[split] = int((~good).sum())
        rows = rows[good]
        if not len(rows):
            raise UserError(f"{content.where}: no sample of {split} is left, all hold NaN or infinity: mend them.")
        labels, names = numbered(content.labels[rows + offset])
        group_of = group_of_classes(content.labels, content.groups(), content.where) if self.group_by else None
        groups = [group_of[one] for one in names] if group_of is not None else None
        data = _arranged(_gathered(samples, rows), self.channels_last, f"{content.where}: '{name}'")
        return TensorSource(data, labels, names, f"{content.where} {split}", groups)

    def convert_image(self, image: Image.Image) -> Tensor:
        """An image as the training images look: ``(C, H, H)`` in [0, 1], where samples are square uint8 images.

        Args:
            image: as opened.

        Returns:
            The sample.
        """
        _, samples, _ = self._opened().samples("train")
        one = _arranged(torch.empty(1, *samples.shape[1:], dtype=torch.uint8), self.channels_last, self.path)
        channels, *sides = one.shape[1:]
        if samples.dtype != np.uint8 or len(sides) != 2 or sides[0] != sides[1] or channels not in (1, 3):
            return super().convert_image(image)
        return ImageLook(sides[0], channels).sample(image)

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the way the classes were divided."""
        return super().protocol() | {"split": self._opened().division or str(self.division)}

    def _opened(self) -> _Content:
        if self._content is None:
            file = self._given if self._given is not None else open_arrays(self.path, self.labels_path)
            self._content = _Content(file, self.names)
        return self._content

    def _classes(self, content: _Content) -> dict[str, list[str]]:
        if content.splits is not None:
            return classes_of_splits(content.labels, content.splits, content.where)
        return self.division(natural_order(content.labels), self.num_ways, self.eval_num_ways, content.where)


def _keep(value: Any) -> Callable[[], Any]:  # noqa: ANN401
    return lambda: value


# ---- which array is what


class _Names(NamedTuple):
    """What the user calls the arrays."""

    x: str | None
    y: str | None
    split: str
    groups: str


class _Content:
    """The arrays of a file by their meaning; samples are read when asked for.

    Args:
        file: the arrays by name.
        names: what the user calls them.

    Attributes:
        labels: ``(N,)`` of all samples, those of several parts one after the other.
        splits: ``(N,)`` the split of each, where the file tells it.
        division: how it tells it.

    Raises:
        UserError: an array is missing, or is not what its name says.
    """

    def __init__(self, file: ArrayFile, names: _Names) -> None:
        self.file, self.names, self.where = file, names, file.name
        if not len(file):
            raise UserError(f"{self.where} holds no array: save samples and labels into it.")
        pairs = _pairs(file, names)
        self._x = {part: x for part, (x, _) in pairs.items()}
        found = {part: _texts(file[y], f"{self.where}: the labels '{y}'") for part, (_, y) in pairs.items()}
        self.labels = np.concatenate(list(found.values()))
        starts = np.cumsum([0, *(len(part) for part in found.values())])
        self._offsets = dict(zip(found, starts.tolist(), strict=False))
        self._counts = {part: len(labels) for part, labels in found.items()}
        self.division: str | None = None
        self.splits: NDArray[np.str_] | None = None
        if "all" not in pairs:
            self.division = "by the names of the arrays"
            self.splits = np.repeat(list(found), list(self._counts.values()))
        elif names.split in file:
            self.division = f"by the array '{names.split}'"
            self.splits = _splits(self._per_sample(names.split), f"{self.where}: '{names.split}'")
        elif names.split != "split":
            raise UserError(f"{_missing(file, names.split, 'the splits')} Name it by split, or leave it out.")
        self._read: dict[str, NDArray[Any]] = {}

    def samples(self, split: str) -> tuple[str, NDArray[Any], int]:
        """The array that a split lies in.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Its name, itself, and the position of its first sample among all.

        Raises:
            UserError: it does not fit the labels, or holds no numbers.
        """
        part = "all" if "all" in self._x else split
        if part not in self._x:
            raise UserError(f"{self.where} has no samples for {split}, only for {', '.join(self._x)}: add some.")
        name = self._x[part]
        if name not in self._read:
            self._read[name] = _checked(self.file[name], self._counts[part], f"{self.where}: '{name}'")
        return name, self._read[name], self._offsets[part]

    def forget_samples(self) -> None:
        """Frees their memory, until they are asked for again."""
        self._read = {}

    def groups(self) -> NDArray[np.str_]:
        """``(N,)`` the group of each sample.

        Raises:
            UserError: there are none.
        """
        parts = {
            part: [self.names.groups] if part == "all" else [*_of_split(self.names.groups, part)] for part in self._x
        }
        found = [next((name for name in names if name in self.file), None) for names in parts.values()]
        if None in found:
            missing = list(parts.values())[found.index(None)][0]
            raise UserError(f"{_missing(self.file, missing, 'the groups')} Name it by groups, or set group_by=false.")
        if "all" in self._x:
            return self._per_sample(self.names.groups)
        groups = [_texts(self.file[str(name)], f"{self.where}: the groups '{name}'") for name in found]
        for (part, count), name, one in zip(self._counts.items(), found, groups, strict=True):
            if len(one) != count:
                raise UserError(f"{self.where}: '{name}' has {len(one)} entries for {count} samples of {part}.")
        return np.concatenate(groups)

    def _per_sample(self, name: str) -> NDArray[np.str_]:
        values = _texts(self.file[name], f"{self.where}: '{name}'")
        if len(values) != len(self.labels):
            raise UserError(
                f"{self.where}: '{name}' has {len(values)} entries for {len(self.labels)} labels; they must be as many."
            )
        return values


def _of_split(base: str, split: str) -> Iterator[str]:
    for word in SPLIT_NAMES[split]:
        yield f"{base}_{word}"
        yield f"{word}_{base}"


def _pairs(file: ArrayFile, names: _Names) -> dict[str, tuple[str, str]]:
    """Names of samples and labels, by split or, where they come undivided, of ``"all"``.

    Raises:
        UserError: none, several that could be meant, or one without the other.
    """
    undivided = names.x is not None and names.x in file
    parts: list[str | None] = [] if undivided else [*SPLITS]
    found = {split: _pick(file, names.x, _SAMPLES, "x", split) for split in parts}
    found = {split: name for split, name in found.items() if name is not None} or {
        None: _pick(file, names.x, _SAMPLES, "x", None)
    }
    pairs = {}
    for split, x in found.items():
        y = _pick(file, names.y, _LABELS, "y", split)
        for name, given, known, what, option in (
            (x, names.x, _SAMPLES, "the samples", "x"),
            (y, names.y, _LABELS, "the labels", "y"),
        ):
            if name is None:
                wanted = given or known[0]
                wanted = wanted if split is None else f"{wanted}_{split}"
                raise UserError(f"{_missing(file, wanted, what)} Name it by {option}.")
        pairs[split or "all"] = str(x), str(y)
    return pairs


def _pick(file: ArrayFile, given: str | None, known: Sequence[str], option: str, split: str | None) -> str | None:
    bases = (given,) if given is not None else known
    for choices in (bases[:1], bases[1:]):  # what it should be called goes before what it may be called
        names = [name for base in choices for name in ((base,) if split is None else _of_split(base, split))]
        found = [name for name in names if name in file]
        if len(found) > 1:
            raise UserError(
                f"{file.name} has {' and '.join(repr(name) for name in found)}, which could both be meant: name the "
                f"right one by {option}."
            )
        if found:
            return found[0]
    return None


def _missing(file: ArrayFile, wanted: str, what: str) -> str:
    shown = ", ".join([*file][:20]) + (", ..." if len(file) > 20 else "")
    return f"{file.name} has no array '{wanted}' for {what}, only {shown}{did_you_mean(wanted, file)}"


# ---- what is in an array


def _texts(array: NDArray[Any], where: str) -> NDArray[np.str_]:
    """Labels, groups or splits as texts: one for each sample.

    Raises:
        UserError: more than one for each, none at all, or numbers with fractions.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        one_hot = array.ndim == 2 and array.dtype.kind in "biuf"
        advice = "give the index of the class, such as y.argmax(1)" if one_hot else "give one for each sample"
        raise UserError(f"{where} must have shape (N,), but has {array.shape}: {advice}.")
    if not len(array):
        raise UserError(f"{where} is empty, but must have one entry for each sample.")
    if array.dtype.kind == "c":
        raise UserError(f"{where} is complex, but must hold whole numbers or texts.")
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.round(array)) & (abs(array) < 2**53)
        if not whole.all():
            index = int(np.flatnonzero(~whole)[0])
            raise UserError(
                f"{where} must hold whole numbers or texts, but entry {index} is {array[index]}: give the class of "
                "each sample."
            )
        array = array.astype(np.int64)
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} holds bytes that are no UTF-8: save it as text.") from error
    texts: NDArray[np.str_] = array.astype(np.str_)
    empty = np.flatnonzero(np.char.str_len(texts) == 0)
    if len(empty):
        raise UserError(f"{where} is an empty text at entry {empty[0]}: give every sample one.")
    return texts


def _splits(words: NDArray[np.str_], where: str) -> NDArray[np.str_]:
    unique, inverse = np.unique(words, return_inverse=True)
    splits = [split_of(str(word)) for word in unique]
    if None in splits:
        word = str(unique[splits.index(None)])
        raise UserError(
            f"{where} must hold train, val or test, but entry {np.flatnonzero(words == word)[0]} is '{word}'"
            f"{did_you_mean(word, SPLITS)}"
        )
    return np.array(splits, dtype=np.str_)[inverse]


def _checked(array: NDArray[Any], count: int, where: str) -> NDArray[Any]:
    """Samples that can be used.

    Raises:
        UserError: no numbers, no samples, or not as many as labels.
    """
    if array.dtype.kind not in "biuf":
        kind = "complex" if array.dtype.kind == "c" else "texts"
        advice = "give its real and imaginary parts as channels" if kind == "complex" else "encode it"
        raise UserError(f"{where} is {kind}, but samples must be real numbers: {advice}.")
    if array.ndim < 2 or not math.prod(array.shape[1:]):
        advice = ": give samples of one number as (N, 1)" if array.ndim == 1 else ""
        raise UserError(f"{where} must hold samples (N, *shape), but has shape {array.shape}{advice}.")
    if len(array) != count:
        raise UserError(f"{where} has {len(array)} samples, but there are {count} labels; they must be as many.")
    return array


def _chunks(samples: NDArray[Any], count: int) -> Iterator[slice]:
    step = max(1, _CHUNK // math.prod(samples.shape[1:]))
    return (slice(start, start + step) for start in range(0, count, step))


def _finite(samples: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the rows float32 can hold."""
    good = np.ones(len(rows), dtype=np.bool_)
    if samples.dtype.kind == "f":
        largest = np.finfo(np.float32).max
        for chunk in _chunks(samples, len(rows)):
            values = samples[rows[chunk]].reshape(len(rows[chunk]), -1)
            good[chunk] = (np.abs(values) <= largest).all(1)  # which NaN is not
    return good


def _gathered(samples: NDArray[Any], rows: NDArray[np.int64]) -> Tensor:
    """A copy of some samples: uint8 as they are, others as float32."""
    kind = np.uint8 if samples.dtype == np.uint8 else np.float32
    gathered = np.empty((len(rows), *samples.shape[1:]), dtype=kind)
    for chunk in _chunks(samples, len(rows)):
        gathered[chunk] = samples[rows[chunk]]
    return torch.from_numpy(gathered)


def _arranged(data: Tensor, channels_last: bool | None, where: str) -> Tensor:
    """Images with their channels first.

    Raises:
        UserError: ``channels_last`` for samples that are no images.
    """
    shape = tuple(data.shape[1:])
    if channels_last and len(shape) != 3:
        raise UserError(f"{where}: channels_last=true needs samples (H, W, C), but they are {shape}: leave it out.")
    if channels_last is None:
        if data.dtype == torch.uint8 and len(shape) == 2:
            return data.unsqueeze(1)
        channels_last = len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3)
    return data.permute(0, 3, 1, 2).contiguous() if channels_last else data
