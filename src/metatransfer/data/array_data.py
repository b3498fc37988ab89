"""Labelled arrays: files of numpy, torch, safetensors and MATLAB, or arrays at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metatransfer.data.array_checks import check_alike, class_labels, plain, sample_tensor
from metatransfer.data.array_files import ArrayFile, as_array, open_arrays
from metatransfer.data.array_names import LABELS, SAMPLES, named_pair, named_samples
from metatransfer.data.division import natural_order, split_of
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source, TensorSource
from metatransfer.data.unlabelled import NO_CLASS, UnlabelledPart
from metatransfer.errors import UserError


class ArrayDataModule(LabelledDataModule):
    """Arrays of samples and labels, from a file or from Python.

    The files are those of :class:`ArrayEpisodes`: ``.npz``, a pair of ``.npy``, ``.pt``, ``.pth``, ``.safetensors`` and
    MATLAB's ``.mat`` up to version 7. Samples are called ``x`` (or ``X``, ``data``, ``images``, else ``features``,
    ``fts``) and labels ``y`` (or ``Y``, ``labels``, ``targets``); a target domain needs no labels.
    What is for what is told by, in this order,

    - the names ``x_train``, ``y_train``, ``x_val``, ``y_val``, ``x_test``, ``y_test`` (or ``train_x``, ...); beside
      those of ``val`` or ``test`` plain ``x`` and ``y`` are the training;
    - an array ``split``, with ``train``, ``val`` or ``test`` for each sample;
    - nothing: every class is divided at random.

    Samples ``(N, *shape)`` of any shape become float32. uint8 stays uint8 in memory and is divided by 255 when read, as
    images are; but uint8 vectors ``(N, D)`` are counts, which keep their values, as all other numbers do. Labels are
    whole numbers or texts, ``(N,)`` or ``(N, 1)``. The remaining arguments are those of
    :class:`LabelledDataModule`::

        data = ArrayDataModule.from_arrays(x, y, test=(x_test, y_test), batch_size=64)

        lightning fit --config CONFIG.yaml --data ArrayDataModule --data.path FILE.npz

    Args:
        path: the file.
        labels_path: ``.npy`` file of the labels, where ``path`` is one of samples.
        x: name of the samples, where it is none of the above.
        y: name of the labels, where it is none of the above.
        split: name of the array that says what each sample is for.
        channels_last: whether images are ``(N, H, W, C)``; where left out, if the last size is 1 or 3 and the first is
            neither. uint8 images ``(N, H, W)`` get a channel unless it is ``False``.
        predict: file of samples for ``lightning predict`` to label; their names are their places, from 0 on.
        **labelled: arguments of :class:`LabelledDataModule`.

    Raises:
        UserError: as :class:`LabelledDataModule`.
    """

    def __init__(
        self,
        path: str,
        labels_path: str | None = None,
        x: str | None = None,
        y: str | None = None,
        split: str = "split",
        channels_last: bool | None = None,
        predict: str | None = None,
        **labelled: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**labelled)
        self.path, self.labels_path = path, labels_path
        self.names = {"x": x, "y": y, "split": split}
        self.channels_last = channels_last
        self.predict: Any = predict
        self._arrays: ArrayFile | None = None

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor | Sequence[str] | None,
        *,
        val: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
        predict: ArrayLike | Tensor | None = None,
        name: str = "arrays",
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """Labelled arrays or tensors at hand; the command line takes files.

        Args:
            x: ``(N, *shape)`` samples: of the training where ``val`` or ``test`` is given, else of all splits.
            y: ``(N,)`` labels, whole numbers or texts; ``None`` for a target domain without labels.
            val: samples and labels for validation; taken from ``x`` where there is only a ``test``.
            test: samples and labels for the test.
            predict: ``(M, *shape)`` samples to label.
            name: how to call them in messages.
            **options: arguments of the class, such as ``batch_size``; none that name files or arrays.

        Returns:
            The data module.

        Raises:
            UserError: an option that only files have, or no pair of samples and labels.
        """
        for option in ("path", "labels_path", "split"):
            if option in options:
                raise UserError(f"from_arrays takes no {option}: leave it out, or use {cls.__name__}(path=...).")
        given = {"x": x, "y": y}
        for part, pair in (("val", val), ("test", test)):
            if pair is None:
                continue
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise UserError(f"{part} must be a pair (samples, labels), but is a {type(pair).__name__}: give both.")
            given |= {f"x_{part}": pair[0], f"y_{part}": pair[1]}
        data = cls(path=name, **options)
        there = {key: value for key, value in given.items() if value is not None}
        data._arrays = ArrayFile(name, {key: partial(plain, value) for key, value in there.items()})
        data.predict = predict
        return data

    def parts(self) -> Mapping[str, Source]:
        """The samples of the file.

        Returns:
            All of them, or those of each split, in memory; classes are named by their labels.

        Raises:
            UserError: arrays that are missing, do not fit each other, or hold what is no number or label.
        """
        arrays = self._arrays if self._arrays is not None else open_arrays(self.path, self.labels_path)
        found = self._found(arrays, named_pair)
        return {part: self._source(x, y, part) for part, (x, y) in found.items() if y is not None}

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The samples of the file in its order, with or without labels.

        Raises:
            UserError: as :meth:`parts`, but for missing labels.
        """
        alone = self.labels_path is None and self.path.lower().endswith(".npy")
        arrays = self._arrays
        if arrays is None:  # a .npy file is opened with labels, of which there may be none
            arrays = open_arrays(self.path, self.path if alone else self.labels_path)
            arrays = ArrayFile(arrays.name, {"x": partial(arrays.__getitem__, "x")}) if alone else arrays
        found = self._found(arrays, named_samples)
        return {
            part: UnlabelledPart(TensorSource(x, np.zeros(len(x), np.int64), [NO_CLASS], self._name(part)), y)
            for part, (x, y) in found.items()
        }

    def unlabelled(self) -> tuple[Source, tuple[str, ...]]:
        """The samples of ``predict``, named by their places.

        Raises:
            UserError: ``predict`` was not given, or holds no samples like those of the training.
        """
        if self.predict is None:
            raise UserError("nothing is given to label: set predict to samples, or to a file of them.")
        if isinstance(self.predict, str):
            # a .npy file is opened with labels, which are not looked at
            arrays = open_arrays(self.predict, self.predict if self.predict.lower().endswith(".npy") else None)
            known = [self.names["x"]] if self.names["x"] is not None else list(SAMPLES)
            there = [name for name in known if name in arrays] or (list(arrays) if len(arrays) == 1 else [])
            if len(there) != 1:
                raise UserError(
                    f"predict '{self.predict}' must hold samples called {' or '.join(known)}, but holds "
                    f"{', '.join(arrays) or 'nothing'}: say which by x."
                )
            given, where = arrays[there[0]], f"predict '{self.predict}'"
        else:
            given, where = as_array(plain(self.predict), "predict"), "predict"
        x = sample_tensor(_counted(given), self.channels_last, where)
        train = self._training_samples()
        check_alike(x, train.data, f"{where}: the samples", "those of the training")
        return TensorSource(x, np.zeros(len(x), np.int64), ["unlabelled"], where), tuple(map(str, range(len(x))))

    def show(self, split: str, number: int) -> str | Tensor:
        """An image, stretched to [0, 1] if it goes beyond; the values of anything else.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            number: of the sample in it.

        Returns:
            ``(C, H, W)``, or a sentence.
        """
        sample = self.split(split).read(np.array([number]), torch.device("cpu"))[0]
        assert isinstance(sample, Tensor)
        return shown(sample)

    # ---- reading

    @property
    def _where(self) -> str:
        return self._arrays.name if self._arrays is not None else f"'{self.path}'"

    def _name(self, part: str) -> str:
        return self._where if part == "all" else f"{self._where} {part}"

    def _found(
        self, arrays: ArrayFile, named: Callable[..., tuple[str, str | None] | None]
    ) -> dict[str, tuple[Tensor, NDArray[np.str_] | None]]:
        """Samples and labels of each part; ``named`` says which arrays they are.

        Raises:
            UserError: there are none, or they do not fit each other.
        """
        by_split = {split: named(arrays, self.names, split, self._where) for split in SPLITS}
        pairs = {split: pair for split, pair in by_split.items() if pair is not None}
        plain = named(arrays, self.names, None, self._where) if "train" not in pairs else None
        if plain is not None:
            pairs = {"train" if pairs else "all": plain} | pairs
        elif "train" not in pairs:
            raise UserError(
                f"{self._where} has no samples and labels called {' or '.join(SAMPLES)} and {' or '.join(LABELS)}, "
                f"only {', '.join(arrays) or 'nothing'}: name them by x and y."
            )
        found = {part: self._part(arrays, *pair) for part, pair in pairs.items()}
        if "all" in found and self.names["split"] in arrays:
            found = self._by_split(arrays, *found["all"])
        first = next(iter(found))
        for part, (x, _) in found.items():
            check_alike(x, found[first][0], f"{self._where}: the samples of {part}", f"those of {first}")
        return found

    def _training_samples(self) -> TensorSource:
        """What new samples must be like; labels are not needed for that."""
        opened = self._parts or {part: one.source for part, one in self.unlabelled_parts().items()}
        first = next(iter(opened.values()))
        assert isinstance(first, TensorSource)
        return first

    def _part(self, arrays: ArrayFile, x_name: str, y_name: str | None) -> tuple[Tensor, NDArray[np.str_] | None]:
        x = sample_tensor(_counted(arrays[x_name]), self.channels_last, f"{self._where}: '{x_name}'")
        if y_name is None:
            return x, None
        y = class_labels(arrays[y_name], f"{self._where}: '{y_name}'")
        if len(x) != len(y):
            raise UserError(
                f"{self._where}: '{x_name}' has {len(x)} samples, but '{y_name}' {len(y)} labels: give one for each."
            )
        return x, y

    def _by_split(
        self, arrays: ArrayFile, x: Tensor, y: NDArray[np.str_] | None
    ) -> dict[str, tuple[Tensor, NDArray[np.str_] | None]]:
        where = f"{self._where}: '{self.names['split']}'"
        words = class_labels(arrays[str(self.names["split"])], where)
        if len(words) != len(x):
            raise UserError(f"{where} has {len(words)} words for {len(x)} samples: give one for each.")
        splits = {word: split_of(word) for word in np.unique(words).tolist()}
        for word, split in splits.items():
            if split is None:
                raise UserError(f"{where} holds '{word}', but must hold train, val and test.")
        if "train" not in splits.values():
            raise UserError(f"{where} says train of no sample: a classifier needs some to learn.")
        of_sample = np.array([splits[word] for word in words.tolist()], np.str_)
        members = {split: np.flatnonzero(of_sample == split) for split in SPLITS if split in splits.values()}
        return {
            split: (x[torch.from_numpy(rows)], y[rows] if y is not None else None) for split, rows in members.items()
        }

    def _source(self, x: Tensor, y: NDArray[np.str_], part: str) -> TensorSource:
        names = natural_order(y)
        places = {name: place for place, name in enumerate(names)}
        labels = np.array([places[name] for name in y.tolist()], np.int64)
        return TensorSource(x, labels, names, self._name(part))


def _counted(given: NDArray[Any]) -> NDArray[Any]:
    """Vectors of bytes are counts, no images: as numbers, which nothing divides by 255."""
    return given.astype(np.float32) if given.ndim == 2 and given.dtype == np.uint8 else given


def shown(sample: Tensor) -> str | Tensor:
    """A sample as a person looks at it.

    Args:
        sample: of any shape.

    Returns:
        An image ``(C, H, W)``, stretched to [0, 1] if it goes beyond; the values of anything else.
    """
    if sample.dim() == 2:
        sample = sample.unsqueeze(0)
    if sample.dim() == 3 and len(sample) in (1, 3):
        low, high = min(0.0, float(sample.min())), max(1.0, float(sample.max()))
        return (sample - low) / (high - low)
    values = ", ".join(f"{value:.4g}" for value in sample.flatten()[:8].tolist())
    return f"{values}{', ...' if sample.numel() > 8 else ''}"
