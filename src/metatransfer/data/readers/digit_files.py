"""The file formats of digit data sets: idx, LIBSVM, MATLAB, torch and folders of images; none can run code."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metatransfer.data.readers.array_checks import sample_tensor
from metatransfer.data.readers.array_files import open_arrays
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import decode
from metatransfer.data.readers.image_source import by_name_and_content
from metatransfer.errors import UserError

DIGIT_NAMES = tuple("0123456789")
_IDX_BYTES = 8  # the code of unsigned bytes in the magic number


class DigitFile(NamedTuple):
    """Images and their labels.

    Attributes:
        images: N images, ``(H, W)`` or ``(H, W, 3)`` uint8 or of PIL.
        labels: ``(N,)`` digits, 0 to 9.
        name: the file or folder, for messages.
    """

    images: Iterable[NDArray[np.uint8] | Image.Image]
    labels: NDArray[np.int64]
    name: str


def digit_labels(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Labels as digits; 10 stands for 0."""
    if values.dtype.kind not in "uif" or values.size != max(values.shape, default=0):
        raise UserError(f"{where} must hold one digit for each image, but holds {values.dtype} of {values.shape}.")
    wrong = ~np.isin(values, np.arange(11))
    if wrong.any():
        raise UserError(f"{where} must hold digits, 0 to 9, or 10 for 0, but holds {values[wrong][0]}.")
    return values.reshape(-1).astype(np.int64) % 10


def read_idx(images: Path, labels: Path) -> DigitFile:
    """A pair of idx files, the format of MNIST, plain or compressed with gzip."""
    pixels, values = _idx_array(images, 3), _idx_array(labels, 1)
    _check_count(len(pixels), f"'{images}'", len(values), f"'{labels}'")
    return DigitFile(pixels, digit_labels(values, f"'{labels}'"), f"'{images}'")


def read_libsvm(path: Path, side: int) -> DigitFile:
    """Lines ``label 1:value 2:value ...`` with grey values from -1 to 1 and labels from 1 (digit 0) to 10 (digit 9)."""
    from sklearn.datasets import load_svmlight_file  # takes a second

    try:
        with _opened(path) as file:
            table, labels = load_svmlight_file(file, n_features=side**2, dtype=np.float64, zero_based=False)
    except Exception as error:  # a damaged archive or line raises whatever its parser does
        raise UserError(
            f"'{path}' cannot be read as LIBSVM lines 'label 1:value ... {side**2}:value' ({_reason(error)}): "
            "download it again."
        ) from error
    if not len(labels):
        raise UserError(f"'{path}' is empty: download it again.")
    low, high = float(table.min()), float(table.max())
    if not -1 <= low < 0 or high > 1:
        raise UserError(
            f"'{path}' must hold values from -1 (paper) to 1 (ink), but holds {low:g} to {high:g}: download the "
            "data set that is scaled to [-1, 1]."
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f"'{path}' must hold labels 1 (digit 0) to 10 (digit 9), but holds {labels.min():g} to "
                        f"{labels.max():g}: download it again.")  # fmt: skip
    pixels = np.rint((table.toarray() + 1) * 127.5).astype(np.uint8).reshape(-1, side, side)
    return DigitFile(pixels, labels.astype(np.int64) - 1, f"'{path}'")


def read_arrays(path: Path, images: str, labels: str, count_last: bool = False) -> DigitFile:
    """Two arrays of a MATLAB or torch file: square images uint8, with channels first or last, and labels."""
    arrays = open_arrays(str(path))
    missing = [name for name in (images, labels) if name not in arrays]
    if missing:
        raise UserError(
            f"'{path}' has no array called {' or '.join(missing)}: it must hold images {images} and labels {labels}; "
            "download it again."
        )
    given, digits = arrays[images], digit_labels(arrays[labels], f"'{path}': {labels}")
    x = sample_tensor(np.moveaxis(given, -1, 0) if count_last else given, None, f"'{path}': {images}").numpy()
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[2] != x.shape[3]:
        shapes = "(H, H, 3, N)" if count_last else "(N, H, H), (N, H, H, 3) or (N, 3, H, H)"
        raise UserError(
            f"'{path}': {images} must be uint8 images {shapes}, but is {given.dtype} {given.shape}: download it again."
        )
    _check_count(len(x), f"'{path}': {images}", len(digits), labels)
    return DigitFile(x[:, 0] if x.shape[1] == 1 else x.transpose(0, 2, 3, 1), digits, f"'{path}'")


def read_folders(folder: Path) -> DigitFile:
    """Images in one folder per digit, ``<label>/<image>``."""
    tree = open_tree(folder, "folder")
    names = tree.folders()
    wrong = [name for name in names if name not in DIGIT_NAMES]
    if wrong or not names:
        found = f"'{wrong[0]}'" if wrong else "none"
        raise UserError(f"'{folder}' must hold a folder of images for each digit, 0 to 9, but holds {found}.")
    files = [(file, int(name)) for name in names for file in tree.files(name)]
    order = by_name_and_content([file for file, _ in files])
    return _of_files([files[index] for index in order], folder)


def read_listed(folder: Path, listing: Path) -> DigitFile:
    """Images in one folder, and a text file with a line ``name label`` for each."""
    tree = open_tree(folder, "folder")
    files: list[tuple[ImageFile, int]] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if label not in DIGIT_NAMES or not name.strip():
            raise UserError(f"'{listing}', line {number}, must read 'name label' with a digit, but is '{line:.60}'.")
        file = tree.find(name.strip()) if "/" not in name else None
        if file is None:
            raise UserError(
                f"'{listing}', line {number}, names '{name:.60}', which is not in '{folder}': put it there, or "
                "remove the line."
            )
        files.append((file, int(label)))
    return _of_files(files, folder)


def _of_files(files: list[tuple[ImageFile, int]], folder: Path) -> DigitFile:
    labels = np.array([label for _, label in files], np.int64)
    return DigitFile((_image(file) for file, _ in files), labels, f"'{folder}'")


def _image(file: ImageFile) -> Image.Image:
    if file.problem:
        raise UserError(file.problem)
    return decode(file, Image.Image.copy)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return bz2.open(path) if path.suffix == ".bz2" else path.open("rb")


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:100]


def _check_count(images: int, images_name: str, labels: int, labels_name: str) -> None:
    if images != labels:
        raise UserError(f"{images_name} has {images} images, but {labels_name} {labels} labels: download both again.")


def _idx_array(path: Path, axes: int) -> NDArray[np.uint8]:
    # two zeros, the code of the type, the number of axes, their big-endian lengths, and the data
    try:
        with _opened(path) as file:
            content = file.read()
    except Exception as error:  # a damaged archive raises whatever its decompressor does
        raise UserError(f"'{path}' cannot be read ({_reason(error)}): download it again.") from error
    magic = bytes([0, 0, _IDX_BYTES, axes])
    if content[:4] != magic:
        raise UserError(
            f"'{path}' must be an idx file of bytes with {axes} ax{'e' if axes > 1 else 'i'}s, which starts with "
            f"{magic.hex()}, but starts with {content[:4].hex() or 'nothing'}: download it again."
        )
    start = 4 + 4 * axes
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise UserError(f"'{path}' should have {expected} bytes, but has {len(content)}: download it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
