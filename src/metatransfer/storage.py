"""Atomic writing of files, and a cache of arrays on disk."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TAIL = 16  # digits of the length of the note


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Writes a temporary file, which replaces the file at ``path`` if the block raises no error.

    Readers see the old file or the new one, never a part, even after a crash of the machine. If several processes write
    the same file, the last one wins.

    Yields:
        An empty file in the same folder; it is removed if the block raises an error.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path``, also if the disk is full.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:100]}-{uuid.uuid4().hex}.part")
    try:
        draft.touch()  # fails before the work is done; unlike files of tempfile, it follows the umask
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # otherwise the file could be empty after a crash
        draft.replace(target)
    except OSError as error:
        if error.errno in DISK_FULL or error.filename == str(draft):
            error.filename = str(target)  # a full disk is reported without a name
        raise
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; texts that a spreadsheet would run as a formula get an apostrophe in front."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_not_a_formula(cell) for cell in row] for row in rows)
    return text.getvalue()


def _not_a_formula(cell: object) -> object:
    with contextlib.suppress(ValueError):
        float(str(cell))  # -1 is a number
        return cell
    return f"'{cell}" if str(cell).startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def write_atomically(path: str | Path, content: str | bytes | memoryview) -> None:
    """Writes a file completely or not at all, see :func:`atomic_file`."""
    with atomic_file(path) as draft:
        # a file name that is not valid Unicode keeps its bytes
        draft.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def cache_folder(name: str = "", given: str | Path | None = None) -> Path:
    """The folder for cached files."""
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("METATRANSFER_CACHE") or "~/.cache/metatransfer").expanduser() / name


def short_path(path: str | Path) -> str:
    """The path relative to the current folder, if it is inside."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class KeptArray(NamedTuple):
    """An array from the cache.

    Attributes:
        array: the array, memory-mapped on request.
        note: the JSON content that was stored with it.
    """

    array: NDArray[Any]
    note: Any


def cache_file(folder: Path, kind: str, *key: str | bytes) -> Path:
    """The name of a cached array."""
    digest = hashlib.sha256()
    for part in key:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return folder / f"{kind}-{digest.hexdigest()[:32]}.npy"


def keep_array(path: Path, array: NDArray[Any], note: object = None) -> None:
    """Stores an array and a note in one file, see :func:`atomic_file`."""
    with atomic_file(path) as draft, draft.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        text = json.dumps({"note": note, "checksum": _checksum(array, note)}).encode()
        file.write(text + f"{len(text):0{_TAIL}}".encode())


def kept_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic], mapped: bool = False) -> KeptArray | None:
    """Reads a file of :func:`keep_array` and marks it as used; ``None`` if it is missing, damaged or does not fit."""
    try:
        # empty files cannot be memory-mapped
        mode: Any = "r" if mapped and np.prod(shape) else None
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            file.seek(-_TAIL - int(file.read()), os.SEEK_END)
            tail = json.loads(file.read()[:-_TAIL])
        if array.shape != shape or array.dtype != dtype or tail["checksum"] != _checksum(array, tail["note"]):
            return None
    except Exception:  # the error depends on what is damaged
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return KeptArray(array, tail["note"])


def forget_old(folder: Path, kind: str) -> None:
    """Removes cached arrays that have not been used for 60 days, and temporary files of killed runs after a day."""
    for pattern, days in ((f"{kind}-*.npy", 60), (f".{kind}-*.part", 1)):
        for entry in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > days * 86400:
                    entry.unlink()


def _checksum(array: NDArray[Any], note: object) -> str:
    flat = np.ascontiguousarray(array).reshape(-1)
    digest = hashlib.sha256(flat.view(np.uint8).data if flat.size else b"")
    digest.update(json.dumps(note).encode())
    return digest.hexdigest()
