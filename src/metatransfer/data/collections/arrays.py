"""Labelled arrays from files of NumPy, torch, safetensors and MATLAB, or from Python."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice, did_you_mean
from metatransfer.data.collections.image_collection import images_below
from metatransfer.data.readers.array_files import SVMLIGHT_SUFFIXES, ArrayFile, open_arrays
from metatransfer.data.readers.array_values import check_alike, class_labels, plain, sample_tensor
from metatransfer.data.readers.image_look import ImageLook, as_sample
from metatransfer.data.readers.image_source import ON_BAD_SAMPLE, ImageReader, OnBadSample
from metatransfer.data.readers.tables import rows_of_splits
from metatransfer.data.sources import (
    NO_CLASS,
    SPLIT_NAMES,
    SPLITS,
    Collection,
    Source,
    TensorSource,
    UnlabelledPart,
    finite_rows,
    group_of_classes,
    numbered,
)
from metatransfer.errors import UserError

SAMPLES = ("x", "X", "data", "images")
LABELS = ("y", "Y", "labels", "targets")
_FEATURES = ("features", "fts")  # samples of files of feature vectors, if none of the above exists


class Arrays(Collection):
    """Arrays of samples and labels, from a file or from Python.

    The files are ``.npz``, a pair of ``.npy``, ``.pt``, ``.pth``, ``.safetensors``, ``.mat`` of MATLAB up to version 7,
    or ``.svm``, ``.libsvm`` and ``.svmlight``. A sparse matrix of scipy, torch or MATLAB stays sparse, also from
    ``scipy.sparse.save_npz`` with its labels in ``labels_path``; batches are dense. Samples are named ``x`` (or ``X``,
    ``data``, ``images``, else ``features``, ``fts``) and labels ``y`` (or ``Y``, ``labels``, ``targets``); a target
    domain needs no labels. The splits are taken from, in this order:

    - the names ``x_train``, ``y_train``, ``x_val``, ``y_val``, ``x_test``, ``y_test`` (or ``train_x``, ...); if there
      are only those of ``val`` or ``test``, ``x`` and ``y`` are the training split;
    - an array ``split`` with ``train``, ``val`` or ``test`` for each sample;
    - otherwise the samples are undivided.

    Samples ``(N, *shape)`` of any shape become float32. uint8 images are divided by 255 when they are read; uint8
    vectors ``(N, D)`` are counts and keep their values, as do all other numbers. Labels are integers or texts, ``(N,)``
    or ``(N, 1)``.

    Args:
        path: the file.
        labels_path: ``.npy`` file of the labels, if ``path`` is a ``.npy`` or sparse ``.npz`` file of samples.
        x: name of the samples. Defaults to one of the above.
        y: name of the labels. Defaults to one of the above.
        split: name of the array with the split of each sample.
        groups: name of the array with the group of each sample (alphabet, superclass, patient), which must be the same
            for all samples of a class.
        channels_last: whether images are ``(N, H, W, C)``. By default they are if the last size is 1 or 3 and the first
            is neither. uint8 images ``(N, H, W)`` get a channel unless it is ``False``.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count samples with NaN or infinity.
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
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        check_choice("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        self.path, self.labels_path, self._where = path, labels_path, f"'{path}'"
        self.names, self.split, self.groups = {"x": x, "y": y}, split, groups
        self.channels_last, self.on_bad_sample = channels_last, on_bad_sample
        self._arrays: ArrayFile | None = None

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor | Sequence[str] | None,
        *,
        val: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
        split: Sequence[str] | NDArray[np.str_] | None = None,
        groups: ArrayLike | Sequence[str] | None = None,
        name: str = "arrays",
        channels_last: bool | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> Self:
        """Creates a collection of arrays or tensors in Python.

        Args:
            x: ``(N, *shape)`` samples: of training if ``val`` or ``test`` is given, else of all splits.
            y: ``(N,)`` labels, integers or texts; ``None`` for a target domain without labels.
            val: samples and labels for validation.
            test: samples and labels for testing.
            split: ``(N,)`` ``"train"``, ``"val"`` or ``"test"`` for each sample.
            groups: ``(N,)`` group of each sample.
            name: name of the arrays in messages.
            channels_last: see the class.
            on_bad_sample: see the class.

        Raises:
            UserError: ``val`` or ``test`` is not a pair.
        """
        given = {"x": x, "y": y, "split": split, "groups": groups}
        for part, pair in (("val", val), ("test", test)):
            if pair is None:
                continue
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise UserError(f"{part} must be a pair (samples, labels), but is a {type(pair).__name__}: give both.")
            given |= {f"x_{part}": pair[0], f"y_{part}": pair[1]}
        data = cls(name, channels_last=channels_last, on_bad_sample=on_bad_sample)
        data._where = name
        arrays = {key: partial(plain, one) for key, one in given.items() if one is not None}
        data._arrays = ArrayFile(name, arrays)
        return data

    def parts(self) -> Mapping[str, Source]:
        """All samples, or those of each split, in memory; the labels are the class names."""
        found: dict[str, Source] = {}
        for part, (x, y, groups) in self._found(labelled=True).items():
            assert y is not None
            labels, names = numbered(y)
            of_class = group_of_classes(y, groups, names, self._where)
            found[part] = TensorSource(x, labels, names, self._name(part), of_class)
        return found

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples in the order of the file, with or without labels."""
        found = self._found(labelled=False).items()
        return {part: UnlabelledPart(_unlabelled(x, self._name(part)), y) for part, (x, y, _) in found}

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """The samples of a file, named by their index, or the images of a folder."""
        if not isinstance(path, str):
            return super().unlabelled(path)
        if Path(path).expanduser().is_dir():
            return images_below(path, ImageReader(self._look))[:2]
        arrays, where = open_arrays(path), f"predict '{path}'"
        pair = (*arrays, None) if len(arrays) == 1 else _named_pair(arrays, self.names, None, labelled=False)
        if pair is None:
            raise UserError(
                f"{where} must hold samples called {' or '.join(SAMPLES)}, but holds "
                f"{', '.join(arrays) or 'nothing'}: set x to their name."
            )
        x = sample_tensor(arrays[pair[0]], self.channels_last, where)
        train = next(iter(self._found(labelled=False).values())).x
        if path.lower().endswith(SVMLIGHT_SUFFIXES) and x.shape[1] < train.shape[1]:
            x = F.pad(x, (0, train.shape[1] - x.shape[1]))  # these files end with the last value that is not 0
        check_alike(x, train, f"{where}: the samples", "those of the training")
        good = self._finite(x, "predict", where)
        return _unlabelled(x[good], where), tuple(map(str, good.tolist()))

    def convert(self, item: Image.Image) -> Tensor:
        """An image in the format of the samples, if these are square uint8 images: ``(C, H, H)`` in [0, 1]."""
        return as_sample(item, self._look)

    @property
    def _look(self) -> ImageLook:
        source = next(iter(self.opened().values()))
        assert isinstance(source, TensorSource)
        x, shape = source.data, source.sample_shape
        if x.dtype != torch.uint8 or len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
            raise UserError(
                f"{self._where}: samples of {str(x.dtype).removeprefix('torch.')} and shape {shape} are not square "
                "uint8 images, so image files cannot be converted to them."
            )
        return ImageLook(shape[1], channels=shape[0])

    def _name(self, part: str) -> str:
        return self._where if part == "all" else f"{self._where} {part}"

    def _found(self, *, labelled: bool) -> "dict[str, _Part]":
        arrays = self._arrays if self._arrays is not None else open_arrays(self.path, self.labels_path)
        named = partial(_named_pair, arrays, self.names, labelled=labelled)
        pairs = {split: pair for split in SPLITS if (pair := named(split))}
        whole = None if "train" in pairs else named(None)
        if whole is not None:
            pairs = {"train" if pairs else "all": whole} | pairs
        elif "train" not in pairs:
            raise UserError(
                f"{self._where} has no samples and labels called {' or '.join(SAMPLES)} and {' or '.join(LABELS)}, "
                f"only {', '.join(arrays) or 'nothing'}: set x and y to their names."
            )
        self._tell_unused(set(arrays) - {name for pair in pairs.values() for name in pair})
        found = {part: self._part(arrays, part, *pair) for part, pair in pairs.items()}
        if "all" in found and self.split in arrays:
            words = self._words(arrays, self.split, len(found["all"].x)).tolist()
            rows = rows_of_splits(words, self.split, self._where, lambda row: f"{self._where}, sample {row}")
            found = {split: found["all"].at(chosen) for split, chosen in rows.items()}
        first = next(iter(found))
        for part, one in found.items():
            check_alike(one.x, found[first].x, f"{self._where}: the samples of {part}", f"those of {first}")
        return {part: one.at(self._finite(one.x, part, self._name(part))) for part, one in found.items()}

    def _tell_unused(self, others: set[str]) -> None:
        known = {self.split, self.groups, *(name for part in SPLITS for name in _split_names(self.groups, part))}
        if unused := sorted(others - known):
            rank_zero_warn(
                f"{self._where} has arrays that are not used, {', '.join(unused)}: if they are needed, set x and y to "
                "the names of samples and labels, without endings of splits such as _train and _test."
            )

    def _part(self, arrays: ArrayFile, part: str, x_name: str, y_name: str | None) -> "_Part":
        x = sample_tensor(arrays.samples(x_name), self.channels_last, f"{self._where}: '{x_name}'")
        names = [*_split_names(self.groups, part if part in SPLITS else None), self.groups]
        groups = next((name for name in names if name in arrays), None)
        y, of_sample = (self._words(arrays, name, len(x)) if name else None for name in (y_name, groups))
        return _Part(x, y, of_sample)

    def _words(self, arrays: ArrayFile, name: str, count: int) -> NDArray[np.str_]:
        where = f"{self._where}: '{name}'"
        words = class_labels(arrays[name], where)
        if len(words) != count:
            raise UserError(f"{where} holds {len(words)} values for {count} samples: give one for each.")
        return words

    def _finite(self, x: Tensor, part: str, where: str) -> NDArray[np.int64]:
        """The samples without NaN and infinity."""
        good = finite_rows(x)
        self.skipped[part] = count = len(good) - int(good.sum())
        if count and self.on_bad_sample == "error":
            raise UserError(
                f"{where}: sample {good.argmin()} holds NaN, infinity or a value beyond float32: fix it, or set "
                f"on_bad_sample=skip to leave out and count such samples, {count} here."
            )
        if not good.any():
            raise UserError(f"{where}: all samples hold NaN or infinity: fix them.")
        return np.flatnonzero(good)


def _unlabelled(x: Tensor, where: str) -> TensorSource:
    return TensorSource(x, np.zeros(len(x), np.int64), [NO_CLASS], where)


class _Part(NamedTuple):
    """Samples ``(N, *shape)`` with labels ``(N,)`` and groups ``(N,)`` as text, if there are any."""

    x: Tensor
    y: NDArray[np.str_] | None
    groups: NDArray[np.str_] | None

    def at(self, rows: NDArray[np.int64]) -> "_Part":
        if len(rows) == len(self.x):
            return self
        y, groups = (None if one is None else one[rows] for one in (self.y, self.groups))
        return _Part(self.x.index_select(0, torch.from_numpy(rows)), y, groups)


def _named_pair(
    arrays: ArrayFile, names: Mapping[str, str | None], split: str | None, *, labelled: bool = True
) -> tuple[str, str | None] | None:
    """The names of the arrays of samples and labels, of a split or undivided."""
    samples, labels = (_named(arrays, names, argument, split) for argument in ("x", "y"))
    if samples is None and labels is not None:
        raise UserError(f"{arrays.name} has '{labels}' without its samples: add them, or set x to their name.")
    if samples is not None and labels is None and labelled:
        raise UserError(
            f"{arrays.name} has the samples '{samples}' without labels: add them, set y to their name, or set "
            "labels_path to their .npy file if the samples are a .npy file."
        )
    return (samples, labels) if samples is not None else None


def _split_names(word: str, split: str | None) -> list[str]:
    """Possible names of an array: ``x`` itself, or in a split ``x_train``, ``train_x``, ..."""
    if split is None:
        return [word]
    return [one for name in SPLIT_NAMES[split] for one in (f"{word}_{name}", f"{name}_{word}")]


def _named(arrays: ArrayFile, names: Mapping[str, str | None], argument: str, split: str | None) -> str | None:
    given = names[argument]
    usual = (SAMPLES, _FEATURES) if argument == "x" else (LABELS,)
    choices = usual if given is None else ((given,),)
    found = ([name for word in known for name in _split_names(word, split) if name in arrays] for known in choices)
    there = next(filter(None, found), [])
    if len(there) > 1:
        raise UserError(f"{arrays.name} has both '{there[0]}' and '{there[1]}': set {argument} to one of them.")
    if not there and given is not None and split is None:
        raise UserError(
            f"{arrays.name} has no array '{given}' ({argument}), only {', '.join(arrays)}{did_you_mean(given, arrays)}"
        )
    return there[0] if there else None
