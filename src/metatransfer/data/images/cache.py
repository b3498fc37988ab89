"""Decoded images, kept as uint8 so that the next start need not decode them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from metatransfer.data.images.finding import ImageFile
from metatransfer.data.images.looking import ImageLook, UnreadableError, check_header, decode
from metatransfer.errors import UserError

_FORMAT = 1
_NAME = re.compile(r"images-[0-9a-f]{32}\.npy|\.images-\w+\.tmp")
_DAYS = 60
_TAIL = 16  # digits that give the length of the problems
_warned: set[str] = set()


class Decoded(NamedTuple):
    """Image files as one array.

    Attributes:
        images: ``(N, C, H, W)`` uint8 in the order of the files; mapped from the cache where it was there.
        problems: for each file that is no good its position and a sentence.
    """

    images: NDArray[np.uint8]
    problems: dict[int, str]


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where decoded images are kept.

    Args:
        cache_dir: as the user gave it.

    Returns:
        ``cache_dir``, else what the environment variable ``METATRANSFER_CACHE`` says, else ``~/.cache/metatransfer``.
    """
    return Path(cache_dir or os.environ.get("METATRANSFER_CACHE") or "~/.cache/metatransfer").expanduser()


def cached_images(files: Sequence[ImageFile], look: ImageLook, cache_dir: str | None = None) -> Decoded:
    """Decodes image files, or takes what an earlier run decoded.

    The key is made of the look and of every file's relative name, size and stamp, in order: for a zip the checksums of
    its directory, which is the content itself; for a folder the modification and the change time, since reading every
    byte would cost what the cache saves. So a tree may be moved, and any change of a file is seen.

    Each process writes a file of its own and moves it into place at once. Several that start together do the same work
    and write the same bytes, so it does not matter who is last, and there is no lock that a killed process could leave.
    Without a place to write to, everything works as well, only slower; a warning says so once.

    Args:
        files: which; they must all exist.
        look: how to look at them.
        cache_dir: see :func:`cache_folder`.

    Returns:
        The images and what is wrong with which file.
    """
    return _cached(files, repr(look), look.shape, lambda file: decode(file, look), cache_dir)


def cached_headers(files: Sequence[ImageFile], cache_dir: str | None = None) -> dict[int, str]:
    """Checks image files that are too many to decode; the answer is kept as :func:`cached_images` does.

    Args:
        files: which.
        cache_dir: see :func:`cache_folder`.

    Returns:
        For each file that is no image its position and a sentence.
    """

    def check(file: ImageFile) -> NDArray[np.uint8]:
        check_header(file)
        return np.empty(0, np.uint8)

    return _cached(files, "header", (0,), check, cache_dir).problems


def _cached(
    files: Sequence[ImageFile],
    what: str,
    shape: tuple[int, ...],
    make: Callable[[ImageFile], NDArray[np.uint8]],
    cache_dir: str | None,
) -> Decoded:
    digest = hashlib.sha256(f"{_FORMAT} {PIL.__version__} {what}\n".encode())
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.stamp}\n".encode("utf-8", "surrogateescape"))
    path = cache_folder(cache_dir) / f"images-{digest.hexdigest()[:32]}.npy"
    found = _load(path, (len(files), *shape))
    if found is not None:
        return found
    decoded, final = _make_all(files, shape, make)
    if final:
        _store(path, decoded)
    return decoded


def _make_all(
    files: Sequence[ImageFile], shape: tuple[int, ...], make: Callable[[ImageFile], NDArray[np.uint8]]
) -> tuple[Decoded, bool]:
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


def _load(path: Path, shape: tuple[int, ...]) -> Decoded | None:
    """What the cache has; nothing where the file is missing or was cut short (the problems stand at its end)."""
    try:
        # a mapping of no bytes is an error, so sets of none are read
        images = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            file.seek(-_TAIL - int(file.read()), os.SEEK_END)
            problems = {int(index): str(text) for index, text in json.loads(file.read()[:-_TAIL]).items()}
        if images.shape != shape or images.dtype != np.uint8:
            return None
    except (OSError, ValueError, EOFError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used
    return Decoded(images, problems)


def _store(path: Path, decoded: Decoded) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".images-", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, decoded.images, allow_pickle=False)
            problems = json.dumps(decoded.problems).encode()
            file.write(problems + f"{len(problems):0{_TAIL}}".encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _forget_old(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _warn_once(
            f"decoded images cannot be kept in '{path.parent}' ({error.strerror}), so every start decodes them again: "
            "give another folder by cache_dir or METATRANSFER_CACHE."
        )


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)


def _forget_old(folder: Path) -> None:
    """Removes what nobody used for a long time; a data set that is unpacked anew for every job would fill the disk."""
    for entry in folder.iterdir():
        if _NAME.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _DAYS * 86400:
                    entry.unlink()
