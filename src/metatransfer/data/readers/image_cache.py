"""Caches decoded images as uint8, so that later runs need not decode them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray

from metatransfer.data.readers.image_files import ImageFile
from metatransfer.data.readers.image_look import ImageLook, UnreadableError, check_header, decode
from metatransfer.errors import UserError
from metatransfer.storage import cache_file, cache_folder, forget_old, keep_array, kept_array

_FORMAT = "2"
_KIND = "images"


_Decoded: TypeAlias = tuple[NDArray[np.uint8], dict[int, str]]  # images, and the problem of each unusable file


def cached_images(files: Sequence[ImageFile], look: ImageLook) -> _Decoded:
    """Decodes image files, or reads them from the cache (memory-mapped): ``(N, C, H, W)``, and problems by position.

    The key is the look and the relative name, size and stamp of every file, in order. So a folder may be moved, and any
    change of a file is noticed. Processes that start together write the same bytes; there is no lock that a killed
    process could leave behind. If the cache cannot be written, a warning is shown once.
    """
    return _cached(files, repr(look), look.shape, lambda file: decode(file, look))


def cached_headers(files: Sequence[ImageFile]) -> dict[int, str]:
    """The problems found in the headers of image files, cached as by :func:`cached_images`."""

    def check(file: ImageFile) -> NDArray[np.uint8]:
        check_header(file)
        return np.empty(0, np.uint8)

    return _cached(files, "header", (0,), check)[1]


def _cached(
    files: Sequence[ImageFile], what: str, shape: tuple[int, ...], make: Callable[[ImageFile], NDArray[np.uint8]]
) -> _Decoded:
    key = [f"{file.name}\0{file.size}\0{file.stamp}" for file in files]
    path = cache_file(cache_folder(_KIND), _KIND, _FORMAT, PIL.__version__, what, *key)
    found = kept_array(path, (len(files), *shape), np.uint8, mapped=True)
    if found is not None:
        return found.array, {int(index): str(problem) for index, problem in found.note.items()}
    (images, problems), final = _make_all(files, shape, make)
    if final:
        try:
            keep_array(path, images, problems)
            forget_old(path.parent, _KIND)
        except OSError as error:
            _warn_once(
                f"decoded images cannot be cached in '{path.parent}' ({error.strerror}), so every run decodes them "
                "again: set the environment variable METATRANSFER_CACHE to another folder."
            )
    return images, problems


def _make_all(
    files: Sequence[ImageFile], shape: tuple[int, ...], make: Callable[[ImageFile], NDArray[np.uint8]]
) -> tuple[_Decoded, bool]:
    """All images, and whether all problems are permanent."""
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

    # threads, not processes: decoders release the GIL, and nothing is copied
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for _ in pool.map(fill, range(0, len(files), 256)):
            pass
    return (images, dict(sorted(problems.items()))), final


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
