"""Decoded images, kept as uint8 so that the next start need not decode them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from metatransfer.data.readers.image_files import ImageFile
from metatransfer.data.readers.image_look import ImageLook, UnreadableError, check_header, decode
from metatransfer.errors import UserError
from metatransfer.storage import cache_file, cache_folder, forget_old, keep_array, kept_array

_FORMAT = "2"
_KIND = "images"


class Decoded(NamedTuple):
    """Image files as one array.

    Attributes:
        images: ``(N, C, H, W)`` uint8 in the order of the files; mapped from the cache where it was there.
        problems: for each file that cannot be used its position and a sentence.
    """

    images: NDArray[np.uint8]
    problems: dict[int, str]


def cached_images(files: Sequence[ImageFile], look: ImageLook) -> Decoded:
    """Decodes image files, or takes what an earlier run decoded.

    The key is made of the look and of every file's relative name, size and stamp, in order: for a zip the checksums of
    its directory, which is the content itself; for a folder the modification and the change time, since reading every
    byte would cost what the cache saves. So a tree may be moved, and any change of a file is seen.

    Several processes that start together do the same work and write the same bytes, so it does not matter who is last,
    and there is no lock that a killed process could leave. Without a place to write to, everything works as well, only
    slower; a warning says so once.

    """
    return _cached(files, repr(look), look.shape, lambda file: decode(file, look))


def cached_headers(files: Sequence[ImageFile]) -> dict[int, str]:
    """Checks image files that are too many to decode; the answer is kept as :func:`cached_images` does."""

    def check(file: ImageFile) -> NDArray[np.uint8]:
        check_header(file)
        return np.empty(0, np.uint8)

    return _cached(files, "header", (0,), check).problems


def _cached(
    files: Sequence[ImageFile], what: str, shape: tuple[int, ...], make: Callable[[ImageFile], NDArray[np.uint8]]
) -> Decoded:
    key = [f"{file.name}\0{file.size}\0{file.stamp}" for file in files]
    path = cache_file(cache_folder(_KIND), _KIND, _FORMAT, PIL.__version__, what, *key)
    found = kept_array(path, (len(files), *shape), np.uint8, mapped=True)
    if found is not None:
        return Decoded(found.array, {int(index): str(problem) for index, problem in found.note.items()})
    decoded, final = _make_all(files, shape, make)
    if final:
        try:
            keep_array(path, decoded.images, decoded.problems)
            forget_old(path.parent, _KIND)
        except OSError as error:
            _warn_once(
                f"decoded images cannot be kept in '{path.parent}' ({error.strerror}), so every start decodes them "
                "again: give another folder by the environment variable METATRANSFER_CACHE."
            )
    return decoded


def _make_all(
    files: Sequence[ImageFile], shape: tuple[int, ...], make: Callable[[ImageFile], NDArray[np.uint8]]
) -> tuple[Decoded, bool]:
    """All images, and whether the problems are of the files rather than of this moment."""
    images = np.zeros((len(files), *shape), np.uint8)
    problems: dict[int, str] = {}
    final = True

    def fill(start: int) -> None:
        nonlocal final
        for index in range(start, min(start + 256, len(files))):
            try:
                images[index] = make(files[index])
            except UserError as error:
                problems[index] = str(error)
                final = final and not isinstance(error, UnreadableError)

    # threads, not processes: decoders let go of Python's lock, and nothing has to be copied
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for _ in pool.map(fill, range(0, len(files), 256)):
            pass
    return Decoded(images, dict(sorted(problems.items()))), final


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
