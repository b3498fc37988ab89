"""Episodes of arrays: files of numpy, torch and safetensors, or tensors at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice
from metatransfer.data.array_files import ArrayFile, open_arrays
from metatransfer.data.array_names import LABELS, SAMPLES, named_pair
from metatransfer.data.division import (
    RandomDivision,
    check_disjoint,
    classes_of_splits,
    group_of_classes,
    natural_order,
    split_of,
)
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images import ON_BAD_SAMPLE, ImageLook, OnBadSample
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

_CHUNK = 2**24  # values that are looked at at once, so that checks need little memory


class ArrayEpisodes(EpisodicDataModule):
    """Arrays of samples and labels, from a file or from Python.

    ============================ ==============================================================================
    file                         what it holds
    ============================ ==============================================================================
    ``.npz``                     arrays by name, as ``numpy.savez`` writes them
    ``.npy``                     the samples, with the labels in a file of their own (``labels_path``)
    ``.pt``, ``.pth``            a dictionary of tensors, or the pair (samples, labels)
    ``.safetensors``             tensors by name
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
        self._parts: dict[str, _Part] | None = None
        self._division = ""

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor | Sequence[str],
        *,
        split: Sequence[str] | NDArray[np.str_] | None = None,
        groups: ArrayLike | Sequence[str] | None = None,
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
            **options: arguments of the class, such as ``num_ways`` and ``group_by``; none that name files or arrays.

        Returns:
            The data module.

        Raises:
            UserError: an option that only files have.
        """
        for option in ("path", "labels_path", "x", "y", "split", "groups"):
            if option in options:
                raise UserError(f"from_arrays takes no {option}: leave it out, or use {cls.__name__}(path=...).")
        given = {"x": x, "y": y, "split": split, "groups": groups}
        data = cls(path=name, **options)
        data._given = ArrayFile(name, {key: _keep(value) for key, value in given.items() if value is not None})
        return data

    def setup(self, stage: str | None = None) -> None:
        """As of the base; the splits hold copies, so the arrays of the file are let go.

        Args:
            stage: see :meth:`EpisodicDataModule.setup`.
        """
        super().setup(stage)
        self._parts = None

    def source(self, split: str) -> TensorSource:
        """The samples of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A source in memory, its classes named by their labels.

        Raises:
            UserError: no such split, samples or labels that cannot be used, or ``group_by`` without groups.
        """
        if self._parts is None:
            self._parts = self._read()
        if split not in self._parts:
            raise UserError(f"{self._where} has no samples for {split}, only for {', '.join(self._parts)}: add some.")
        part = self._parts[split]
        bad = part.members[~_finite(part.samples, part.members)]
        if len(bad) and self.on_bad_sample == "error":
            more = f", {len(bad)} here" if len(bad) > 1 else ""
            raise UserError(
                f"{self._where}: sample {bad[0]} of '{part.name}' holds NaN or infinity: mend it, or set "
                f"on_bad_sample=skip to leave out and count what cannot be used{more}."
            )
        self.skipped[split] = len(bad)
        members = np.setdiff1d(part.members, bad)
        if not len(members):
            raise UserError(f"{self._where}: all samples of {split} hold NaN or infinity: mend them.")
        names = natural_order(part.labels[members])
        position = {name: index for index, name in enumerate(names)}
        groups = None
        if self.group_by:
            if part.groups is None:
                raise UserError(
                    f"{self._where}: group_by needs the groups of the samples, but there is no array "
                    f"'{self.names['groups']}': add it, or leave group_by out."
                )
            found = group_of_classes(part.labels, part.groups, self._where)
            groups = [found[name] for name in names]
        labels = np.array([position[name] for name in part.labels[members].tolist()])
        return TensorSource(self._samples(part, members), labels, names, f"{self._where} {split}", groups)

    def convert_image(self, image: Image.Image) -> Tensor:
        """An image file as the samples look, where these are images: cut out in the centre and scaled to their size.

        Args:
            image: as opened.

        Returns:
            ``(C, H, H)`` float32 in [0, 1].

        Raises:
            UserError: the samples are no square images of one or three channels in bytes.
        """
        if self._parts is None:
            self._parts = self._read()
        part = next(iter(self._parts.values()))
        shape = tuple(self._samples(part, part.members[:1]).shape[1:])
        if part.samples.dtype != np.uint8 or len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
            raise UserError(
                f"{self._where}: samples of {part.samples.dtype} and shape {shape} are no square images in bytes, so "
                "image files cannot be made to look like them."
            )
        return ImageLook(shape[1], channels=shape[0]).sample(image)

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the way the classes were divided."""
        return super().protocol() | {"split": self._division or "as the file has it"}

    # ---- reading

    @property
    def _where(self) -> str:
        return self._given.name if self._given is not None else f"'{self.path}'"

    def _read(self) -> dict[str, _Part]:
        """The samples and labels of every split.

        Raises:
            UserError: arrays that are missing or do not fit each other.
        """
        arrays = self._given or open_arrays(self.path, self.labels_path)
        named = {split: named_pair(arrays, self.names, split, self._where) for split in SPLITS}
        by_name = {split: pair for split, pair in named.items() if pair is not None}
        if "train" in by_name:
            parts = {split: self._part(arrays, *pair, split) for split, pair in by_name.items()}
            self._division = "by the names of the arrays"
            check_disjoint({split: natural_order(part.labels) for split, part in parts.items()}, self._where)
            return parts
        pair = named_pair(arrays, self.names, None, self._where)
        if pair is None:
            raise UserError(
                f"{self._where} has no samples and labels called {' or '.join(SAMPLES)} and {' or '.join(LABELS)}, "
                f"only {', '.join(arrays) or 'nothing'}: name them by x and y."
            )
        whole = self._part(arrays, *pair, None)
        splits = self._splits(arrays, whole)
        return {
            split: whole._replace(members=np.flatnonzero(splits == split))
            for split in SPLITS
            if (splits == split).any()
        }

    def _splits(self, arrays: ArrayFile, whole: _Part) -> NDArray[np.str_]:
        name = str(self.names["split"])
        if name in arrays:
            words = arrays[name].astype(np.str_)
            self._check_length(name, words, whole)
            found = {word: split_of(word) for word in np.unique(words).tolist()}
            for word, split in found.items():
                if split is None:
                    raise UserError(f"{self._where}: '{name}' holds '{word}', but must hold train, val and test.")
            splits = np.array([found[word] for word in words.tolist()], dtype=np.str_)
            classes_of_splits(whole.labels, splits, self._where)
            self._division = f"by the array '{name}'"
            return splits
        names = natural_order(whole.labels)
        division = self.division(names, self.num_ways, self.eval_num_ways, self._where)
        split_of_class = {one: split for split, members in division.items() for one in members}
        self._division = str(self.division)
        return np.array([split_of_class[one] for one in whole.labels.tolist()])

    def _part(self, arrays: ArrayFile, x_name: str, y_name: str, split: str | None) -> _Part:
        samples, given = arrays[x_name], arrays[y_name]
        if samples.ndim < 2:
            raise UserError(f"{self._where}: '{x_name}' must be samples (N, *shape), but has shape {samples.shape}.")
        if samples.dtype.kind not in "buif":
            raise UserError(f"{self._where}: '{x_name}' holds {samples.dtype}, but samples must be real numbers.")
        if given.ndim == 2 and 1 in given.shape:
            given = given.reshape(-1)
        if given.ndim != 1:
            raise UserError(
                f"{self._where}: '{y_name}' must hold one label for each sample, (N,), but has shape {given.shape}."
            )
        if given.dtype.kind == "f":
            if not np.isfinite(given).all() or (given != np.floor(given)).any():
                raise UserError(
                    f"{self._where}: '{y_name}' holds fractions or NaN, but labels are whole numbers or texts."
                )
            given = given.astype(np.int64)
        if given.dtype.kind == "c":
            raise UserError(f"{self._where}: '{y_name}' holds {given.dtype}, but labels are whole numbers or texts.")
        if not len(samples):
            raise UserError(f"{self._where}: '{x_name}' is empty: add samples.")
        labels = np.array([str(value) for value in given.tolist()], dtype=np.str_)
        part = _Part(x_name, samples, labels, np.arange(len(samples)), None)
        self._check_length(y_name, labels, part)
        name = str(self.names["groups"])
        name = next((one for one in (f"{name}_{split}", f"{split}_{name}", name) if one in arrays), "")
        if not name:
            return part
        groups = np.array([str(value) for value in arrays[name].tolist()], dtype=np.str_)
        self._check_length(name, groups, part)
        return part._replace(groups=groups)

    def _check_length(self, name: str, array: NDArray[Any], part: _Part) -> None:
        if array.shape != (len(part.samples),):
            raise UserError(
                f"{self._where}: '{name}' must hold one value for each of the {len(part.samples)} samples of "
                f"'{part.name}', but has shape {array.shape}."
            )

    def _samples(self, part: _Part, members: NDArray[np.int64]) -> Tensor:
        samples = np.ascontiguousarray(part.samples[members])
        x = torch.from_numpy(samples if samples.dtype == np.uint8 else samples.astype(np.float32))
        sizes = x.shape[1:]
        images = len(sizes) == 3 and sizes[-1] in (1, 3) and sizes[0] not in (1, 3)
        if self.channels_last and len(sizes) != 3:
            raise UserError(
                f"{self._where}: channels_last is for images (N, H, W, C), but '{part.name}' has shape "
                f"{part.samples.shape}: leave it out."
            )
        if self.channels_last or (self.channels_last is None and images):
            return x.permute(0, 3, 1, 2).contiguous()
        if self.channels_last is None and len(sizes) == 2 and x.dtype == torch.uint8:
            return x.unsqueeze(1)
        return x


class _Part(NamedTuple):
    """Arrays that belong together.

    Attributes:
        name: of the samples.
        samples: ``(N, *shape)``.
        labels: ``(N,)`` as text.
        members: which samples are meant.
        groups: ``(N,)`` as text, where there are any.
    """

    name: str
    samples: NDArray[Any]
    labels: NDArray[np.str_]
    members: NDArray[np.int64]
    groups: NDArray[np.str_] | None


def _keep(value: Any) -> Callable[[], Any]:  # noqa: ANN401
    return lambda: value


def _finite(samples: NDArray[Any], members: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the samples hold numbers only, as float32 has them."""
    if samples.dtype.kind != "f":
        return np.ones(len(members), dtype=bool)
    each = max(1, _CHUNK // max(1, samples[0].size))
    with np.errstate(over="ignore"):
        found = [
            np.isfinite(samples[members[start : start + each]].astype(np.float32)).reshape(-1, samples[0].size).all(1)
            for start in range(0, len(members), each)
        ]
    return np.concatenate(found) if found else np.ones(0, dtype=bool)
