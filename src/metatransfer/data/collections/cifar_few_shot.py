"""The benchmarks CIFAR-FS and FC100, made of CIFAR-100."""

import contextlib
import tarfile
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metatransfer.checks import check_choice, check_file, did_you_mean
from metatransfer.data.collections.image_collection import ImageCollection
from metatransfer.data.readers.fetching import fetch
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import ImageReader
from metatransfer.data.sources import SPLITS, LazyParts, Source, TensorSource, of_classes
from metatransfer.errors import UserError, explained
from metatransfer.storage import write_atomically

Benchmark = Literal["cifar_fs", "fc100"]

_BENCHMARKS = {
    "cifar_fs": "CIFAR-FS (Bertinetto 2019), 64/16/20 classes",
    "fc100": "FC100 (Oreshkin 2018), 12/4/4 superclasses, 60/20/20 classes",
}
_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_BINARY = ("train.bin", "test.bin", "fine_label_names.txt")
_PYTHON = ("train", "test", "meta")
_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 2**28  # bytes, more than any file of the archive


class CIFARFewShot(ImageCollection):
    """CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 colour images of 32x32 each, divided by published lists.

    Reads CIFAR-100 as its authors distribute it: ``cifar-100-binary`` or, if that is missing, ``cifar-100-python``,
    the version that torchvision downloads. The latter are pickles, which are loaded only if their MD5 is the authors'.
    Training and test images of CIFAR-100 are pooled, as in both benchmarks. The group of a class is its superclass.

    Args:
        root: the folder that contains ``cifar-100-binary`` or ``cifar-100-python``, or one of these itself.
        benchmark: ``"cifar_fs"`` (Bertinetto et al. 2019, 1805.08136), whose classes were drawn at random, or
            ``"fc100"`` (Oreshkin et al. 2018, 1805.10123), divided by superclass, so that test classes differ more.
        download: whether to download ``cifar-100-binary`` (161 MB) if neither is there.
    """

    divided_by = "class"

    def __init__(self, root: str, benchmark: Benchmark = "cifar_fs", download: bool = False) -> None:
        check_choice("benchmark", benchmark, tuple(_BENCHMARKS))
        self.root = Path(root).expanduser()
        self.benchmark: Benchmark = benchmark
        self.download = download
        self.reader = ImageReader(ImageLook(32))

    def prepare(self) -> None:
        """Downloads CIFAR-100 if ``download`` is set."""
        # errors are raised by parts() in every process; raised in one process here, they would leave the others waiting
        with contextlib.suppress(UserError):
            _find(self.root, self.download)

    def parts(self) -> Mapping[str, Source]:
        """The classes of each split with 600 images each, those of CIFAR-100's training set first."""
        return LazyParts(self._classes, SPLITS)

    def protocol(self) -> dict[str, Any]:
        """The benchmark's split."""
        return {"split": _BENCHMARKS[self.benchmark]}

    @cached_property
    def _pool(self) -> TensorSource:
        """All images, with the superclass of each class as its group."""
        folder = _find(self.root, self.download)
        images, labels, names = (_read_binary if (folder / _BINARY[0]).is_file() else _read_python)(folder)
        expected = [row[0] for row in _table()]
        if sorted(names) != sorted(expected):
            odd = next((name for name in names if name not in expected), "a repeated name")
            raise UserError(
                f"'{folder}' has {len(names)} classes that are not the 100 of CIFAR-100 (the first: '{odd}'"
                f"{did_you_mean(odd, expected).rstrip('.')}): get CIFAR-100, not CIFAR-10 or another set."
            )
        if len(labels) == 0 or labels.max() >= 100:
            raise UserError(f"'{folder}' has no images, or labels outside of 0 .. 99: unpack CIFAR-100 again.")
        groups = {row[0]: row[1] for row in _table()}
        pixels = torch.from_numpy(images.reshape(-1, 3, 32, 32))
        return TensorSource(pixels, labels, names, f"'{folder}'", [groups[name] for name in names])

    def _classes(self, split: str) -> Source:
        name = f"{_BENCHMARKS[self.benchmark].partition(' ')[0]} {split}"
        return of_classes(self._pool, list(benchmark_classes(self.benchmark, split)), name)


@cache
def _table() -> list[list[str]]:
    """Class, superclass, and split in both benchmarks."""
    lines = (Path(__file__).parents[1] / "cifar100_splits.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines[1:]]


def benchmark_classes(benchmark: Benchmark, split: str) -> dict[str, str]:
    """The classes of CIFAR-100 in a split of a benchmark, sorted, with their superclasses."""
    column = 2 + list(_BENCHMARKS).index(benchmark)
    return {row[0]: row[1] for row in sorted(_table()) if row[column] == split}


def _find(root: Path, download: bool) -> Path:
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
    kinds = tarfile.TarError, KeyError, OSError, EOFError
    problem = explained(f"'{archive}' cannot be unpacked", "remove it, so that it is downloaded again", *kinds)
    with problem, tarfile.open(archive) as tar:
        for name in _BINARY:
            member = tar.extractfile(f"cifar-100-binary/{name}")
            content = member.read(_MAX_MEMBER + 1) if member is not None else b""
            if len(content) > _MAX_MEMBER:
                raise tarfile.TarError(f"{name} is larger than {_MAX_MEMBER} bytes")
            write_atomically(folder / name, content)


def _read_binary(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
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
    return records[:, 2:], records[:, 1].astype(np.int64), names


def _read_python(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    from torchvision.datasets import CIFAR100  # type: ignore[import-untyped] # half a second

    class Files(CIFAR100):  # type: ignore[misc]
        base_folder = folder.name

    problem = f"'{folder}' does not hold the files of CIFAR-100 (their MD5 differs), and as pickles they could run code"
    remedy = f"unpack CIFAR-100 again, or get the pickle-free {_URL}"
    with explained(problem, remedy, RuntimeError, quoted=False):
        # checks the MD5 of the files, which are pickles, before it loads them
        parts = [Files(str(folder.parent), train=train) for train in (True, False)]
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2).reshape(-1, _PIXELS)
    return images, np.array(parts[0].targets + parts[1].targets, np.int64), parts[0].classes
