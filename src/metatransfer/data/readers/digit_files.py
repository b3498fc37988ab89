"""The file formats of digit data sets: idx, LIBSVM, MATLAB, torch and folders of images; none can run code."""

import bz2
import gzip
import io
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metatransfer.data.readers.array_files import open_arrays
from metatransfer.data.readers.array_values import sample_tensor
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import decode
from metatransfer.data.readers.image_source import by_name_and_content
from metatransfer.errors import UserError, explained

DIGIT_NAMES = tuple("0123456789")
T = TypeVar("T")
_MAX_FILE = 2**30  # bytes after unpacking, more than any of these data sets
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

    form = f"LIBSVM lines 'label 1:value ... {side**2}:value'"
    table, labels = _parsed(
        path, form, lambda file: load_svmlight_file(file, n_features=side**2, dtype=np.float64, zero_based=False)
    )
    return grey_digits(table.toarray(), labels, f"'{path}'", (-1, 1), first=1)


def read_rows(path: Path, side: int) -> DigitFile:
    """Lines ``label value value ...`` with grey values from -1 to 1, as in The Elements of Statistical Learning."""
    form = f"lines of a label and {side**2} values"
    rows = _parsed(path, form, lambda file: np.loadtxt(file, ndmin=2).reshape(-1, 1 + side**2))
    return grey_digits(rows[:, 1:], rows[:, 0], f"'{path}'", (-1, 1))


def read_hdf5(path: Path, split: str) -> DigitFile:
    """A file with ``train/data`` and ``train/target``, and the same of ``test``: grey values from 0 to 1."""
    with explained(f"'{path}' needs h5py", "pip install h5py", ImportError, quoted=False):
        import h5py  # optional
    with _reading(path, f"HDF5 with {split}/data and {split}/target"), h5py.File(path) as file:
        data, labels = (np.asarray(file[split][name]) for name in ("data", "target"))
    return grey_digits(data, labels, f"'{path}': {split}", (0, 1))


def grey_digits(
    values: NDArray[Any], labels: NDArray[Any], where: str, span: tuple[float, float], first: int = 0
) -> DigitFile:
    """Square images as rows of numbers between paper and ink, with labels from ``first`` (digit 0) on."""
    if not len(labels):
        raise UserError(f"{where} is empty: download it again.")
    low, high = float(values.min()), float(values.max())
    # a minimum of 0 means that another scale was used
    if not span[0] <= low or not high <= span[1] or (span[0] < 0 <= low):
        raise UserError(
            f"{where} must hold values from {span[0]} (paper) to {span[1]} (ink), but holds {low:g} to {high:g}: "
            "download the data set that is scaled in this way."
        )
    if not np.isin(labels, np.arange(first, first + 10)).all():
        raise UserError(
            f"{where} must hold labels {first} (digit 0) to {first + 9} (digit 9), but holds {labels.min():g} to "
            f"{labels.max():g}: download it again."
        )
    pixels = np.rint((values - span[0]) * (255 / (span[1] - span[0]))).astype(np.uint8)
    side = math.isqrt(pixels[0].size)
    _check_count(len(pixels), where, labels.size, "it")
    return DigitFile(pixels.reshape(-1, side, side), labels.reshape(-1).astype(np.int64) - first, where)


def _parsed(path: Path, form: str, parse: Callable[[IO[bytes]], T]) -> T:
    with _reading(path, form):
        with _opened(path) as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise ValueError(f"it holds more than {_MAX_FILE} bytes")
        return parse(io.BytesIO(content))


def read_matrix(path: Path, images: str, labels: str, rows: slice) -> DigitFile:
    """Some rows of a MATLAB file of images as rows of numbers, from -1 or 0 to 1, with labels from 1 (digit 0) on."""
    arrays = _named(path, images, labels)
    values = arrays[images]
    span = (-1, 1) if values.size and values.min() < 0 else (0, 1)
    return grey_digits(values[rows], arrays[labels].reshape(-1)[rows], f"'{path}'", span, first=1)


def read_by_class(path: Path, images: str, side: int) -> DigitFile:
    """A MATLAB array ``(side², N, 10)`` uint8: the columns of N images of each of the digits 1, 2, ..., 9 and 0."""
    arrays = open_arrays(str(path))
    given = arrays[images] if images in arrays else np.empty(0)
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[::2] != (side**2, 10):
        raise UserError(
            f"'{path}' must hold {images}, uint8 images ({side**2}, N, 10), but holds {', '.join(arrays) or 'nothing'}"
            f"{f' of {given.dtype} {given.shape}' if given.size else ''}: download it again."
        )
    x = given.transpose(2, 1, 0).reshape(-1, side, side).swapaxes(1, 2)
    return DigitFile(x, np.repeat(np.arange(1, 11) % 10, given.shape[1]), f"'{path}'")


def read_arrays(path: Path, images: str, labels: str, count_last: bool = False) -> DigitFile:
    """Two arrays of a MATLAB or torch file: square images uint8, with channels first or last, and labels."""
    arrays = _named(path, images, labels)
    given, digits = arrays[images], digit_labels(arrays[labels], f"'{path}': {labels}")
    x = sample_tensor(np.moveaxis(given, -1, 0) if count_last else given, None, f"'{path}': {images}").numpy()
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[2] != x.shape[3]:
        shapes = "(H, H, 3, N)" if count_last else "(N, H, H), (N, H, H, 3) or (N, 3, H, H)"
        raise UserError(
            f"'{path}': {images} must be uint8 images {shapes}, but is {given.dtype} {given.shape}: download it again."
        )
    _check_count(len(x), f"'{path}': {images}", len(digits), labels)
    return DigitFile(x[:, 0] if x.shape[1] == 1 else x.transpose(0, 2, 3, 1), digits, f"'{path}'")


def _named(path: Path, images: str, labels: str) -> Mapping[str, NDArray[Any]]:
    arrays = open_arrays(str(path))
    missing = [name for name in (images, labels) if name not in arrays]
    if missing:
        raise UserError(
            f"'{path}' has no array called {' or '.join(missing)}: it must hold images {images} and labels {labels}; "
            "download it again."
        )
    return arrays


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


def _reading(path: Path, form: str) -> AbstractContextManager[None]:
    return explained(f"'{path}' cannot be read as {form}", "download it again")


def _check_count(images: int, images_name: str, labels: int, labels_name: str) -> None:
    if images != labels:
        raise UserError(f"{images_name} has {images} images, but {labels_name} {labels} labels: download both again.")


def _idx_array(path: Path, axes: int) -> NDArray[np.uint8]:
    # two zeros, the code of the type, the number of axes, their big-endian lengths, and the data
    content = _parsed(path, "an idx file", lambda file: file.read())
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
