"""Reads the file formats that digit data sets come in: idx, LIBSVM, MATLAB, torch and folders of PNG images.

Nothing is unpacked to disk, and no file is read that could run code.
"""

from __future__ import annotations

import bz2
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.data.readers.array_checks import sample_tensor
from metatransfer.data.readers.array_files import open_arrays
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import decode, file_bytes
from metatransfer.data.readers.pixels import PixelLook
from metatransfer.errors import UserError

_IDX_BYTES = 8  # the code of unsigned bytes in the magic number


class DigitFile(NamedTuple):
    """Images and their labels, as read.

    Attributes:
        samples: as many ``(C, H, W)`` uint8 as there are labels.
        labels: ``(N,)`` of 0 to 9.
        name: the file or folder, to be named.
    """

    samples: Iterator[Tensor]
    labels: NDArray[np.int64]
    name: str

    def followed(self, others: DigitFile) -> DigitFile:
        """These and then others."""
        labels = np.concatenate([self.labels, others.labels])
        return DigitFile(chain(self.samples, others.samples), labels, f"{self.name} and {others.name}")


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first file there is, by folder and then by name; ``None`` where there is none."""
    found = (folder / name for folder in folders for name in names)
    return next((path for path in found if path.is_file()), None)


def digit_labels(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Labels as digits, 10 being another name of 0.

    Raises:
        UserError: no numbers, or others than 0 to 10.
    """
    if values.dtype.kind not in "uif" or values.size != max(values.shape, default=0):
        raise UserError(f"{where} must hold one digit for each image, but holds {values.dtype} of {values.shape}.")
    wrong = ~np.isin(values, np.arange(11))
    if wrong.any():
        raise UserError(f"{where} must hold digits, 0 to 9, or 10 for 0, but holds {values[wrong][0]}.")
    return values.reshape(-1).astype(np.int64) % 10


def read_idx(images: Path, labels: Path, look: PixelLook) -> DigitFile:
    """The pair of idx files that MNIST comes as, plain or packed with gzip."""
    pixels, values = _idx_array(images, 3), _idx_array(labels, 1)
    _check_count(len(pixels), f"'{images}'", len(values), f"'{labels}'")
    return DigitFile(map(look, pixels), digit_labels(values, f"'{labels}'"), f"'{images}'")


def read_libsvm(path: Path, side: int, look: PixelLook) -> DigitFile:
    """Lines ``label 1:value 2:value ...`` of grey values from -1 to 1 and labels from 1, for 0, to 10, for 9.

    Raises:
        UserError: damaged, no such lines, or other values.
    """
    from sklearn.datasets import load_svmlight_file  # takes a second

    try:
        with _opened(path) as file:
            table, labels = load_svmlight_file(file, n_features=side**2, dtype=np.float64, zero_based=False)
    except Exception as error:  # a damaged archive or line raises whatever its parser does
        raise UserError(
            f"'{path}' cannot be read as LIBSVM lines 'label 1:value ... {side**2}:value' ({_reason(error)}): "
            "get it again."
        ) from error
    if not len(labels):
        raise UserError(f"'{path}' is empty: get it again.")
    low, high = float(table.min()), float(table.max())
    if not -1 <= low < 0 or high > 1:
        raise UserError(
            f"'{path}' must hold values from -1 (paper) to 1 (ink), but holds {low:g} to {high:g}: get the data set "
            "that is scaled to [-1, 1]."
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f"'{path}' must hold labels 1 (digit 0) to 10 (digit 9), but holds {labels.min():g} to "
                        f"{labels.max():g}: get it again.")  # fmt: skip
    pixels = np.rint((table.toarray() + 1) * 127.5).astype(np.uint8).reshape(-1, side, side)
    return DigitFile(map(look, pixels), labels.astype(np.int64) - 1, f"'{path}'")


def read_mat(path: Path, side: int, look: PixelLook) -> DigitFile:
    """A MATLAB file with ``X`` of shape ``(side, side, 3, N)`` uint8 and ``y`` with N labels.

    Raises:
        UserError: damaged, or other arrays.
    """
    arrays = open_arrays(str(path))
    missing = [name for name in ("X", "y") if name not in arrays]
    if missing:
        raise UserError(
            f"'{path}' has no array called {' or '.join(missing)}: it must hold images X and labels y; get it again."
        )
    x, labels = arrays["X"], digit_labels(arrays["y"], f"'{path}': y")
    if x.dtype != np.uint8 or x.shape[:-1] != (side, side, 3):
        raise UserError(
            f"'{path}': X must be uint8 images ({side}, {side}, 3, N), but is {x.dtype} {x.shape}: get it again."
        )
    _check_count(x.shape[-1], f"'{path}': X", len(labels), "y")
    return DigitFile(map(look, x.transpose(3, 0, 1, 2)), labels, f"'{path}'")


def read_tensors(path: Path, look: PixelLook) -> DigitFile:
    """The pair ``(images, labels)`` of a torch file: images uint8, channels first or last.

    Raises:
        UserError: damaged, with Python objects, or other arrays.
    """
    arrays = open_arrays(str(path))
    if not {"x", "y"} <= set(arrays):
        raise UserError(f"'{path}' must hold the pair (images, labels), but holds {', '.join(arrays) or 'nothing'}.")
    where = f"'{path}': the images"
    x = sample_tensor(arrays["x"], None, where).numpy()
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(f"{where} must be uint8 (N, H, W), (N, H, W, 3) or (N, 3, H, W), but are {x.dtype} {x.shape}.")
    labels = digit_labels(arrays["y"], f"'{path}': the labels")
    _check_count(len(x), where, len(labels), "the labels")
    images = x[:, 0] if x.shape[1] == 1 else x.transpose(0, 2, 3, 1)
    return DigitFile(map(look, images), labels, f"'{path}'")


def read_folders(folder: Path, look: PixelLook) -> DigitFile:
    """Images in a folder for each digit, ``<label>/<image>``.

    Raises:
        UserError: folders that are called otherwise, or none; when read, an image that is damaged.
    """
    tree = open_tree(folder, "folder")
    names = tree.folders()
    wrong = [name for name in names if name not in "0123456789" or len(name) != 1]
    if wrong or not names:
        found = f"'{wrong[0]}'" if wrong else "none"
        raise UserError(f"'{folder}' must hold a folder of images for each digit, 0 to 9, but holds {found}.")
    images = [(file, Path(file.name).name, int(name)) for name in names for file in tree.files(name)]
    often = Counter(name for _, name, _ in images)
    images.sort(key=lambda one: (one[1], file_bytes(one[0]) if often[one[1]] > 1 and not one[0].problem else b""))
    labels = np.array([label for *_, label in images], np.int64)
    return DigitFile(_images([file for file, *_ in images], look), labels, f"'{folder}'")


def read_listed(folder: Path, listing: Path, look: PixelLook) -> DigitFile:
    """Images of one folder and a text with a line ``name label`` for each.

    Raises:
        UserError: a line that is not of that kind, or names no image there; when read, an image that is damaged.
    """
    tree = open_tree(folder, "folder")
    files: list[ImageFile] = []
    labels: list[int] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        file = tree.find(name.strip()) if "/" not in name else None
        if label not in tuple("0123456789") or not name.strip():
            raise UserError(f"'{listing}', line {number}, must read 'name label' with a digit, but is '{line:.60}'.")
        if file is None:
            raise UserError(
                f"'{listing}', line {number}, names '{name:.60}', which is not in '{folder}': put it there, or take "
                "the line out."
            )
        files.append(file)
        labels.append(int(label))
    return DigitFile(_images(files, look), np.array(labels, np.int64), f"'{folder}'")


# ---- parts of the readers


def _images(files: Sequence[ImageFile], look: PixelLook) -> Iterator[Tensor]:
    for file in files:
        if file.problem:
            raise UserError(file.problem)
        yield decode(file, look)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return bz2.open(path) if path.suffix == ".bz2" else path.open("rb")


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:100]


def _check_count(images: int, images_name: str, labels: int, labels_name: str) -> None:
    # raises an error for images without labels
    if images != labels:
        raise UserError(f"{images_name} has {images} images, but {labels_name} {labels} labels: get both again.")


def _idx_array(path: Path, axes: int) -> NDArray[np.uint8]:
    # an array of bytes: two zeros, the code of the type, the number of axes, their lengths, big-endian, and the data
    try:
        with _opened(path) as file:
            content = file.read()
    except Exception as error:  # a damaged archive raises whatever its decompressor does
        raise UserError(f"'{path}' cannot be read ({_reason(error)}): get it again.") from error
    magic = bytes([0, 0, _IDX_BYTES, axes])
    if content[:4] != magic:
        raise UserError(
            f"'{path}' must be an idx file of bytes with {axes} ax{'e' if axes > 1 else 'i'}s, which starts with "
            f"{magic.hex()}, but starts with {content[:4].hex() or 'nothing'}: get it again."
        )
    start = 4 + 4 * axes
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise UserError(f"'{path}' says that it has {expected} bytes, but has {len(content)}: get it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
