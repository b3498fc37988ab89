"""Labelled arrays from files of NumPy, torch, safetensors and MATLAB, or from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice
from metatransfer.data.collections.image_collection import images_below
from metatransfer.data.readers.array_checks import check_alike, class_labels, finite_rows, plain, sample_tensor
from metatransfer.data.readers.array_files import LABELS, SAMPLES, ArrayFile, named_pair, open_arrays, split_names
from metatransfer.data.readers.image_look import ImageLook, as_sample
from metatransfer.data.readers.image_source import ON_BAD_SAMPLE, ImageReader, OnBadSample
from metatransfer.data.readers.splits import rows_of_splits
from metatransfer.data.sources import (
    NO_CLASS,
    SPLITS,
    Collection,
    Source,
    TensorSource,
    UnlabelledPart,
    group_of_classes,
    numbered,
)
from metatransfer.errors import UserError


class Arrays(Collection):
    """Arrays of samples and labels, from a file or from Python.

    The files are ``.npz``, a pair of ``.npy``, ``.pt``, ``.pth``, ``.safetensors`` or ``.mat`` of MATLAB up to version
    7. Samples are named ``x`` (or ``X``, ``data``, ``images``, else ``features``, ``fts``) and labels ``y`` (or ``Y``,
    ``labels``, ``targets``); a target domain needs no labels. The splits are taken from, in this order:

    - the names ``x_train``, ``y_train``, ``x_val``, ``y_val``, ``x_test``, ``y_test`` (or ``train_x``, ...); if there
      are only those of ``val`` or ``test``, ``x`` and ``y`` are the training split;
    - an array ``split`` with ``train``, ``val`` or ``test`` for each sample;
    - otherwise the samples are undivided.

    Samples ``(N, *shape)`` of any shape become float32. uint8 images are divided by 255 when they are read; uint8
    vectors ``(N, D)`` are counts and keep their values, as do all other numbers. Labels are integers or texts, ``(N,)``
    or ``(N, 1)``.

    Args:
        path: the file.
        labels_path: ``.npy`` file of the labels, if ``path`` is a ``.npy`` file of samples.
        x: name of the samples. Defaults to one of the above.
        y: name of the labels. Defaults to one of the above.
        split: name of the array with the split of each sample.
        groups: name of the array with the group of each sample (alphabet, superclass, patient), which must be the same
            for all samples of a class.
        channels_last: whether images are ``(N, H, W, C)``. By default they are if the last size is 1 or 3 and the first
            is neither. uint8 images ``(N, H, W)`` get a channel unless it is ``False``.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count samples with NaN or infinity.

    Raises:
        UserError: ``on_bad_sample`` is unknown.
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
        self.path, self.labels_path = path, labels_path
        self.names = {"x": x, "y": y}
        self.split, self.groups = split, groups
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

        Returns:
            The collection.

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
        data._arrays = ArrayFile(name, {key: partial(plain, one) for key, one in given.items() if one is not None})
        return data

    def parts(self) -> Mapping[str, Source]:
        """All samples, or those of each split, in memory; the labels are the class names."""
        found: dict[str, Source] = {}
        for part, one in self._found(labelled=True).items():
            assert one.y is not None
            labels, names = numbered(one.y)
            groups = None
            if one.groups is not None:
                of_class = group_of_classes(one.y, one.groups, self._where)
                groups = [of_class[name] for name in names]
            found[part] = TensorSource(one.x, labels, names, self._name(part), groups)
        return found

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples in the order of the file, with or without labels."""
        return {
            part: UnlabelledPart(TensorSource(x, np.zeros(len(x), np.int64), [NO_CLASS], self._name(part)), y)
            for part, (x, y, _) in self._found(labelled=False).items()
        }

    def unlabelled(self, path: str) -> tuple[Source, tuple[str, ...]]:
        """The samples of a file, named by their index, or the images of a folder."""
        if Path(path).expanduser().is_dir():
            return images_below(path, ImageReader(self._look))[:2]
        arrays = open_arrays(path)
        known = [self.names["x"]] if self.names["x"] is not None else list(SAMPLES)
        there = [name for name in known if name in arrays] or (list(arrays) if len(arrays) == 1 else [])
        if len(there) != 1:
            raise UserError(
                f"predict '{path}' must hold samples called {' or '.join(known)}, but holds "
                f"{', '.join(arrays) or 'nothing'}: set x to their name."
            )
        where = f"predict '{path}'"
        x = sample_tensor(arrays[there[0]], self.channels_last, where)
        self._check_finite(x, where)
        train = next(iter(self._found(labelled=False).values())).x
        check_alike(x, train, f"{where}: the samples", "those of the training")
        return TensorSource(x, np.zeros(len(x), np.int64), [NO_CLASS], where), tuple(map(str, range(len(x))))

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

    @property
    def _where(self) -> str:
        return self._arrays.name if self._arrays is not None else f"'{self.path}'"

    def _name(self, part: str) -> str:
        return self._where if part == "all" else f"{self._where} {part}"

    def _found(self, *, labelled: bool) -> dict[str, _Part]:
        arrays = self._arrays if self._arrays is not None else open_arrays(self.path, self.labels_path)
        by_split = {split: named_pair(arrays, self.names, split, labelled=labelled) for split in SPLITS}
        pairs = {split: pair for split, pair in by_split.items() if pair is not None}
        plain_pair = named_pair(arrays, self.names, None, labelled=labelled) if "train" not in pairs else None
        if plain_pair is not None:
            pairs = {"train" if pairs else "all": plain_pair} | pairs
        elif "train" not in pairs:
            raise UserError(
                f"{self._where} has no samples and labels called {' or '.join(SAMPLES)} and {' or '.join(LABELS)}, "
                f"only {', '.join(arrays) or 'nothing'}: set x and y to their names."
            )
        found = {part: self._part(arrays, part, *pair) for part, pair in pairs.items()}
        if "all" in found and self.split in arrays:
            found = self._by_split(arrays, found["all"])
        first = next(iter(found))
        for part, one in found.items():
            check_alike(one.x, found[first].x, f"{self._where}: the samples of {part}", f"those of {first}")
        return {part: self._finite(one, part) for part, one in found.items()}

    def _part(self, arrays: ArrayFile, part: str, x_name: str, y_name: str | None) -> _Part:
        x = sample_tensor(arrays[x_name], self.channels_last, f"{self._where}: '{x_name}'")
        names = [*split_names(self.groups, part if part in SPLITS else None), self.groups]
        groups = next((name for name in names if name in arrays), None)
        y, of_sample = (self._words(arrays, name, len(x)) for name in (y_name, groups))
        return _Part(x, y, of_sample)

    def _words(self, arrays: ArrayFile, name: str | None, count: int) -> NDArray[np.str_] | None:
        if name is None:
            return None
        where = f"{self._where}: '{name}'"
        words = class_labels(arrays[name], where)
        if len(words) != count:
            raise UserError(f"{where} holds {len(words)} values for {count} samples: give one for each.")
        return words

    def _by_split(self, arrays: ArrayFile, whole: _Part) -> dict[str, _Part]:
        words = self._words(arrays, self.split, len(whole.x))
        assert words is not None
        rows = rows_of_splits(words.tolist(), self.split, self._where, lambda row: f"{self._where}, sample {row}")
        return {split: whole.at(chosen) for split, chosen in rows.items()}

    def _finite(self, one: _Part, part: str) -> _Part:
        if self.on_bad_sample == "error":
            self._check_finite(one.x, self._name(part))
            return one
        good = np.flatnonzero(finite_rows(one.x))
        self.skipped[part] = len(one.x) - len(good)
        if not len(good):
            raise UserError(f"{self._name(part)}: all samples hold NaN or infinity: fix them.")
        return one.at(good) if self.skipped[part] else one

    def _check_finite(self, x: Tensor, where: str) -> None:
        bad = np.flatnonzero(~finite_rows(x))
        if len(bad):
            more = f", {len(bad)} here" if len(bad) > 1 else ""
            raise UserError(
                f"{where}: sample {bad[0]} holds NaN, infinity or a value beyond float32: fix it, or set "
                f"on_bad_sample=skip to leave out and count such samples{more}."
            )


class _Part(NamedTuple):
    """Samples ``(N, *shape)`` with labels ``(N,)`` and groups ``(N,)`` as text, if there are any."""

    x: Tensor
    y: NDArray[np.str_] | None
    groups: NDArray[np.str_] | None

    def at(self, rows: NDArray[np.int64]) -> _Part:
        y, groups = (None if one is None else one[rows] for one in (self.y, self.groups))
        return _Part(self.x[torch.from_numpy(rows)], y, groups)
