"""Episodes of CIFAR-100: the benchmarks CIFAR-FS and FC100, without running what a pickle says."""

from __future__ import annotations

import contextlib
import pickletools
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice, check_file, did_you_mean
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images import ImageLook, fetch
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

Benchmark = Literal["cifar_fs", "fc100"]

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_BINARY = ("train.bin", "test.bin", "fine_label_names.txt")
_PYTHON = ("train", "test", "meta")
_PIXELS = 3 * 32 * 32

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_SUPERCLASS_OF = {name: superclass for superclass, names in SUPERCLASSES.items() for name in names}
# Bertinetto et al. 2019 draw the classes at random; what is in neither list is for training
_CIFAR_FS = {
    "val": "beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile maple_tree "
    "motorcycle tractor",
    "test": "whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby "
    "man woman bicycle pickup_truck rocket",
}
# Oreshkin et al. 2018 divide by superclass, so that test classes are far from training classes
_FC100 = {
    "val": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}
_BENCHMARKS = {
    "cifar_fs": "CIFAR-FS (Bertinetto 2019), 64/16/20 classes",
    "fc100": "FC100 (Oreshkin 2018), 12/4/4 superclasses, 60/20/20 classes",
}


def benchmark_classes(benchmark: Benchmark, split: str) -> tuple[str, ...]:
    """The classes of CIFAR-100 in a split of a benchmark.

    Args:
        benchmark: ``"cifar_fs"`` (Bertinetto et al. 2019, 1805.08136) or ``"fc100"`` (Oreshkin et al. 2018,
            1805.10123).
        split: ``"train"``, ``"val"`` or ``"test"``.

    Returns:
        Names of fine labels, sorted.
    """
    listed = _CIFAR_FS if benchmark == "cifar_fs" else _FC100
    split_of = {name: part for part, names in listed.items() for name in names.split()}
    chosen = [
        name
        for name, superclass in _SUPERCLASS_OF.items()
        if split_of.get(name if benchmark == "cifar_fs" else superclass, "train") == split
    ]
    return tuple(sorted(chosen))


class CIFARFewShotEpisodes(EpisodicDataModule):
    """CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 colour images of 32x32 each, divided by published lists.

    Reads CIFAR-100 as its authors distribute it: ``cifar-100-binary`` or, where that is missing, ``cifar-100-python``
    as torchvision lays it out. The latter are pickles; they are read by an interpreter of our own that knows numbers,
    words, lists and arrays and refuses everything else, so a file from a stranger runs no code. Training and test
    images of CIFAR-100 are pooled, as both benchmarks do; superclasses are the classes' groups. The remaining arguments
    are those of :class:`EpisodicDataModule`.

    Args:
        root: the folder that holds ``cifar-100-binary`` or ``cifar-100-python``, or that one itself.
        benchmark: ``"cifar_fs"`` (Bertinetto et al. 2019, 1805.08136) or ``"fc100"`` (Oreshkin et al. 2018,
            1805.10123).
        download: whether to get ``cifar-100-binary`` (161 MB) where nothing is there.
        **episodes: arguments of :class:`EpisodicDataModule`.

    Raises:
        UserError: an unknown benchmark.
    """

    def __init__(
        self,
        root: str,
        benchmark: Benchmark = "cifar_fs",
        download: bool = False,
        **episodes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**episodes)
        check_choice("benchmark", benchmark, tuple(_BENCHMARKS))
        self.root = Path(root)
        self.benchmark = benchmark
        self.download = download
        self.look = ImageLook(32)
        self._pool: _Pool | None = None

    def prepare_data(self) -> None:
        """Downloads in one process of each machine, where that is asked for."""
        # what is wrong is said in setup, by every process; raised in one only, it would leave the others waiting
        with contextlib.suppress(UserError):
            self._place()

    def setup(self, stage: str | None = None) -> None:
        """As of the base; what is read for several splits is read once.

        Args:
            stage: see :meth:`EpisodicDataModule.setup`.
        """
        super().setup(stage)
        self._pool = None  # the splits hold copies of their own

    def source(self, split: str) -> TensorSource:
        """The classes of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            600 images of each class, those of CIFAR-100's training set first.
        """
        if self._pool is None:
            self._pool = _read_pool(self._place())
        images, labels, known = self._pool
        names = benchmark_classes(self.benchmark, split)
        new_label = np.full(len(known), -1)
        new_label[[known.index(name) for name in names]] = np.arange(len(names))
        members = np.flatnonzero(new_label[labels] >= 0)
        return TensorSource(
            torch.from_numpy(images[members].reshape(-1, 3, 32, 32)),
            new_label[labels[members]],
            names,
            f"{_BENCHMARKS[self.benchmark].partition(' ')[0]} {split}",
            [_SUPERCLASS_OF[name] for name in names],
        )

    def convert_image(self, image: Image.Image) -> Tensor:
        """An image scaled by its shorter side and cut out in the centre: ``(3, 32, 32)`` in [0, 1]."""
        return self.look.sample(image)

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the benchmark's split."""
        return super().protocol() | {"split": _BENCHMARKS[self.benchmark]}

    def _place(self) -> Path:
        """The folder with CIFAR-100's files, the pickle-free ones first.

        Raises:
            UserError: neither is there, and neither can, or may, be downloaded.
        """
        for kind, files in (("cifar-100-binary", _BINARY), ("cifar-100-python", _PYTHON)):
            for folder in (self.root / kind, self.root):
                if all((folder / name).is_file() for name in files):
                    return folder
        if not self.download:
            raise UserError(
                f"CIFAR-100 is not in '{self.root}': put the folder cifar-100-binary (unpacked from {_URL}) or "
                "cifar-100-python there, or set download=true."
            )
        archive = self.root / "cifar-100-binary.tar.gz"
        if not archive.is_file():
            fetch([_URL], _MD5, archive)
        _unpack(archive, self.root / "cifar-100-binary")
        return self.root / "cifar-100-binary"


def _unpack(archive: Path, folder: Path) -> None:
    """Takes the three files we need out of the archive, by their names and to ours: no path of the archive is used.

    Raises:
        UserError: a damaged archive, or another one.
    """
    try:
        with tarfile.open(archive) as tar:
            folder.mkdir(exist_ok=True)
            for name in _BINARY:
                member = tar.extractfile(f"cifar-100-binary/{name}")
                temporary = folder / f".{name}.part"
                temporary.write_bytes(member.read() if member is not None else b"")
                temporary.replace(folder / name)
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"'{archive}' cannot be unpacked ({reason}): remove it, so that it is downloaded again."
        ) from error


# ---- reading


class _Pool(NamedTuple):
    images: NDArray[np.uint8]  # (N, 3072)
    labels: NDArray[np.int64]
    names: list[str]


def _read_pool(folder: Path) -> _Pool:
    binary = (folder / _BINARY[0]).is_file()
    pool = _read_binary(folder) if binary else _read_python(folder)
    if sorted(pool.names) != sorted(_SUPERCLASS_OF):
        odd = next((name for name in pool.names if name not in _SUPERCLASS_OF), "a repeated name")
        raise UserError(
            f"'{folder}' has {len(pool.names)} classes that are not the 100 of CIFAR-100 (the first: '{odd}'"
            f"{did_you_mean(odd, _SUPERCLASS_OF).rstrip('.')}): get CIFAR-100, not CIFAR-10 or another set."
        )
    if len(pool.labels) == 0 or not 0 <= pool.labels.min() <= pool.labels.max() < 100:
        raise UserError(f"'{folder}' has no images, or labels outside of 0 .. 99: unpack CIFAR-100 again.")
    return pool


def _read_binary(folder: Path) -> _Pool:
    """Records of a coarse label, a fine label and 3072 pixels, one byte each.

    Raises:
        UserError: a file that was cut.
    """
    parts = []
    for name in _BINARY[:2]:
        path = check_file(folder / name, "CIFAR-100 file")
        content = np.fromfile(path, np.uint8)
        if len(content) % (_PIXELS + 2):
            raise UserError(
                f"'{path}' has {len(content)} bytes, no multiple of the {_PIXELS + 2} of an image: unpack it again."
            )
        parts.append(content.reshape(-1, _PIXELS + 2))
    names = check_file(folder / _BINARY[2], "CIFAR-100 file").read_text(encoding="utf-8").split()
    return _Pool(
        np.concatenate([part[:, 2:] for part in parts]),
        np.concatenate([part[:, 1] for part in parts]).astype(np.int64),
        names,
    )


def _read_python(folder: Path) -> _Pool:
    parts = [_read_python_part(folder / name) for name in _PYTHON[:2]]
    meta = read_plain_pickle(folder / _PYTHON[2])
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in meta.get("fine_label_names", ())]
    return _Pool(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), names)


def _read_python_part(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and fine labels of one file.

    Raises:
        UserError: it holds something else.
    """
    content = read_plain_pickle(path)
    pixels, fine = content.get("data"), np.asarray(content.get("fine_labels", ()))
    right = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (len(fine), _PIXELS)
    if pixels is None or not right or fine.dtype.kind != "i":
        raise UserError(
            f"'{path}' must hold 'data', uint8 of (N, {_PIXELS}), and N numbers in 'fine_labels', but holds "
            f"{', '.join(map(str, content)) or 'nothing'} with {len(fine)} labels: unpack CIFAR-100 again."
        )
    return pixels, fine.astype(np.int64)


# ---- pickles, as data


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of plain values, lists and numeric arrays.

    Python's own reader imports and calls what the file names. This one only puts values together; the three functions
    that numpy's arrays need are known by name and done here.

    Args:
        path: the file.

    Returns:
        Its content, with words as keys.

    Raises:
        UserError: the file asks for anything else, is damaged, or holds no dictionary.
    """
    reader = _PlainPickle(path)
    try:
        with check_file(path, "CIFAR-100 file").open("rb") as file:
            for instruction, argument, _ in pickletools.genops(file):
                reader.step(instruction.name, argument)
        content = reader.result
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.array if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file does to the stack
        raise UserError(f"'{path}' is damaged or no dictionary of arrays ({error}): unpack CIFAR-100 again.") from error


class _Name(str):
    """A function or class that the file names."""


class _Array:
    array: NDArray[Any] | None = None


class _Type:
    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"[|<>=]?[biuf][1248]", code):
            raise ValueError(f"arrays of '{code}'")
        self.dtype = np.dtype(code)


_RECONSTRUCT = {f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")}
_NAMES = _RECONSTRUCT | _FROM_BUFFER | {"numpy ndarray", "numpy dtype", "_codecs encode"}
_INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
_WORDS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_PUSH = frozenset((*_INTEGERS, *_WORDS, *_BYTES, "FLOAT", "BINFLOAT"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


class _PlainPickle:
    """A stack machine for the instructions that plain values and arrays are written with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self.steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "STOP": self._stop,
            "MARK": lambda _: self.marks.append(len(self.stack)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda key: self.stack.append(self.memo[key])),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "LIST": lambda _: self.stack.append(self._marked()),
            "DICT": lambda _: self._items(self._marked(), {}),
            "TUPLE1": lambda _: self.stack.append(tuple(self._last(1))),
            "TUPLE2": lambda _: self.stack.append(tuple(self._last(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self._last(3))),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._items(self._last(2), None),
            "SETITEMS": lambda _: self._items(self._marked(), None),
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._name(" ".join(self._last(2))),
            "REDUCE": lambda _: self._reduce(*self._last(2)),
            "BUILD": lambda _: self._build(*self._last(1)),
        }

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in self.steps:
            self.steps[name](argument)
        else:
            raise self._refusal(f"the pickle instruction {name}")

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"'{self.path}' asks for {what}, which CIFAR-100 does not need and which could run code: do not use this "
            f"file; get the pickle-free {_URL} instead."
        )

    def _stop(self, _: Any) -> None:  # noqa: ANN401
        [self.result] = self.stack

    def _put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def _last(self, count: int) -> list[Any]:
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _marked(self) -> list[Any]:
        return self._last(len(self.stack) - self.marks.pop())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("values appended to no list")
        target += values

    def _items(self, flat: list[Any], new: dict[Any, Any] | None) -> None:
        if new is not None:
            self.stack.append(new)
        self.stack[-1].update(zip(flat[::2], flat[1::2], strict=True))

    def _name(self, name: str) -> None:
        if name not in _NAMES:
            raise self._refusal(f"'{name.replace(' ', '.')}'")
        self.stack.append(_Name(name))

    def _reduce(self, name: Any, arguments: Any) -> None:  # noqa: ANN401
        if not isinstance(name, _Name):
            raise self._refusal("a call of something that is no function")
        if name in _RECONSTRUCT:
            self.stack.append(_Array())
        elif name == "numpy dtype":
            self.stack.append(_Type(arguments[0]))
        elif name == "_codecs encode":
            self.stack.append(arguments[0].encode("latin-1"))
        elif name in _FROM_BUFFER:
            raw, kind, shape, order = arguments
            array = _Array()
            array.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")
            self.stack.append(array)
        else:
            raise self._refusal(f"a call of '{name.replace(' ', '.')}'")

    def _build(self, state: Any) -> None:  # noqa: ANN401
        target = self.stack[-1]
        if isinstance(target, _Array):
            _, shape, kind, fortran, raw = state
            raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as words
            target.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")
        elif isinstance(target, _Type):
            target.dtype = target.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")
        else:
            raise self._refusal("the state of an object")
