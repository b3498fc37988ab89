"""CIFAR-100 as its authors distribute it, in its binary and in its Python version."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_file, did_you_mean
from metatransfer.data.readers.fetching import fetch
from metatransfer.errors import UserError
from metatransfer.storage import write_atomically

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_BINARY = ("train.bin", "test.bin", "fine_label_names.txt")
_PYTHON = ("train", "test", "meta")
_PIXELS = 3 * 32 * 32


class Pool(NamedTuple):
    """The training and the test images of CIFAR-100, one after the other.

    Attributes:
        images: ``(N, 3072)`` uint8, channels first.
        labels: ``(N,)`` places in ``names``.
        names: of the fine classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: list[str]


def find_cifar(root: Path, download: bool) -> Path:
    """The folder with CIFAR-100's files; the binary version is preferred to the Python version."""
    for kind, files in (("cifar-100-binary", _BINARY), ("cifar-100-python", _PYTHON)):
        for folder in (root / kind, root):
            if all((folder / name).is_file() for name in files):
                return folder
    if not download:
        raise UserError(
            f"CIFAR-100 is not in '{root}': put the folder cifar-100-binary (unpacked from {_URL}) or "
            "cifar-100-python there, or set download=true."
        )
    archive = root / "cifar-100-binary.tar.gz"
    if not archive.is_file():
        fetch([_URL], _MD5, archive)
    _unpack(archive, root / "cifar-100-binary")
    return root / "cifar-100-binary"


def _unpack(archive: Path, folder: Path) -> None:
    # extracts the three files by name; no path in the archive is used
    try:
        with tarfile.open(archive) as tar:
            for name in _BINARY:
                member = tar.extractfile(f"cifar-100-binary/{name}")
                write_atomically(folder / name, member.read() if member is not None else b"")
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"'{archive}' cannot be unpacked ({reason}): remove it, so that it is downloaded again."
        ) from error


def read_cifar(folder: Path, expected: Sequence[str]) -> Pool:
    """All images of CIFAR-100."""
    pool = _read_binary(folder) if (folder / _BINARY[0]).is_file() else _read_python(folder)
    if sorted(pool.names) != sorted(expected):
        odd = next((name for name in pool.names if name not in expected), "a repeated name")
        raise UserError(
            f"'{folder}' has {len(pool.names)} classes that are not the 100 of CIFAR-100 (the first: '{odd}'"
            f"{did_you_mean(odd, expected).rstrip('.')}): get CIFAR-100, not CIFAR-10 or another set."
        )
    if len(pool.labels) == 0 or pool.labels.max() >= 100:
        raise UserError(f"'{folder}' has no images, or labels outside of 0 .. 99: unpack CIFAR-100 again.")
    return pool


def _read_binary(folder: Path) -> Pool:
    # records of a coarse label, a fine label and 3072 pixels, one byte each
    parts = []
    for name in _BINARY[:2]:
        path = check_file(folder / name, "CIFAR-100 file")
        content = np.fromfile(path, np.uint8)
        if len(content) % (_PIXELS + 2):
            raise UserError(
                f"'{path}' has {len(content)} bytes, not a multiple of the {_PIXELS + 2} bytes of an image: unpack it "
                "again."
            )
        parts.append(content.reshape(-1, _PIXELS + 2))
    records = np.concatenate(parts)
    names = check_file(folder / _BINARY[2], "CIFAR-100 file").read_text(encoding="utf-8").split()
    return Pool(records[:, 2:], records[:, 1].astype(np.int64), names)


def _read_python(folder: Path) -> Pool:
    from torchvision.datasets import CIFAR100  # type: ignore[import-untyped] # half a second

    class Files(CIFAR100):  # type: ignore[misc]
        base_folder = folder.name

    try:
        # checks the MD5 of the files, which are pickles, before it loads them
        parts = [Files(str(folder.parent), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"'{folder}' does not hold the files of CIFAR-100 (their MD5 differs), and as pickles they could run code: "
            f"unpack CIFAR-100 again, or get the pickle-free {_URL}."
        ) from error
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2).reshape(-1, _PIXELS)
    return Pool(images, np.array(parts[0].targets + parts[1].targets, np.int64), parts[0].classes)
