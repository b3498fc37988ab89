"""Image files in folders and zips: found, checked, decoded once, and kept as uint8."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import threading
import time
import unicodedata
import urllib.request
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metatransfer.checks import check_choice, check_folder, check_positive, check_writable
from metatransfer.data.folders import IMAGE_SUFFIXES
from metatransfer.data.sources import Source, TensorSource
from metatransfer.errors import UserError

MEMORY_LIMIT = 2 * 2**30
OnBadSample = Literal["error", "skip"]
ON_BAD_SAMPLE: tuple[str, ...] = get_args(OnBadSample)
_MAX_FILE = 256 * 2**20  # no photograph is larger; a zip member may claim any size
_CACHE_FORMAT = 1
_CACHE_NAME = re.compile(r"images-[0-9a-f]{32}\.npy|\.images-\w+\.tmp")
_CACHE_DAYS = 60


# ---- finding


class ImageFile(NamedTuple):
    """One image file, not yet opened.

    Attributes:
        container: the folder or the zip file that holds it.
        name: its path in there, with ``/``.
        size: bytes.
        stamp: changes with the content: times of the file, or the checksum in the zip's directory.
        zipped: whether ``container`` is a zip file.
        problem: why it cannot be used, as a sentence; empty where nothing is known against it.
    """

    container: str
    name: str
    size: int = 0
    stamp: str = ""
    zipped: bool = False
    problem: str = ""

    @property
    def where(self) -> str:
        """How to call it in messages."""
        return f"'{self.name}' in '{self.container}'" if self.zipped else f"'{self.container}/{self.name}'"


class ImageTree(ABC):
    """The image files of a folder or of a zip file, by relative name; hidden ones aside.

    Attributes:
        root: the folder or zip file.
    """

    root: str

    @abstractmethod
    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted.

        Args:
            inside: the folder, relative; empty for the top.
        """

    @abstractmethod
    def files(self, inside: str = "") -> list[ImageFile]:
        """The image files below a folder at any depth, sorted; those that cannot be used carry their ``problem``.

        Args:
            inside: the folder, relative; empty for the top.
        """

    @abstractmethod
    def find(self, name: str) -> ImageFile | None:
        """One file by its relative name.

        Args:
            name: with ``/``.

        Returns:
            ``None`` where there is none.
        """


def open_tree(path: str | Path, what: str) -> ImageTree:
    """The image files of a folder or of a zip file.

    Args:
        path: either.
        what: what it is, to be named.

    Returns:
        A tree; folders are listed when they are asked for.

    Raises:
        UserError: nothing there, or a zip file that is damaged or would write outside its folder.
    """
    if Path(path).is_file():
        return _ZipTree(Path(path), what)
    return _FolderTree(check_folder(path, what))


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


class _FolderTree(ImageTree):
    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)

    def folders(self, inside: str = "") -> list[str]:
        with os.scandir(os.path.join(self.root, inside)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))

    def files(self, inside: str = "") -> list[ImageFile]:
        problem = self._link_problem(os.path.join(self.root, inside), ())
        if problem:
            return [self._refused(inside, problem)]
        return list(self._walk(inside, (os.path.realpath(os.path.join(self.root, inside)),)))

    def find(self, name: str) -> ImageFile | None:
        path = os.path.join(self.root, *PurePosixPath(name).parts)
        if not self._inside(os.path.abspath(path)) or not os.path.lexists(path):
            return None
        problem = self._link_problem(path, ())
        return self._refused(name, problem) if problem else self._file(name, path)

    def _inside(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root.rstrip(os.sep) + os.sep)

    def _link_problem(self, path: str, above: tuple[str, ...]) -> str:
        target = os.path.realpath(path)
        if not self._inside(target):
            return f"is a link to '{target}', outside of '{self.root}': put the files themselves there"
        if not os.path.exists(target):
            return f"is a link to '{target}', which does not exist: remove it"
        return f"is a link to the folder '{target}' that it lies in: remove it" if target in above else ""

    def _refused(self, name: str, problem: str) -> ImageFile:
        return ImageFile(self.root, name, problem=f"'{self.root}/{name}' {problem}.")

    def _walk(self, inside: str, above: tuple[str, ...]) -> Iterator[ImageFile]:
        try:
            with os.scandir(os.path.join(self.root, inside)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield self._refused(inside, f"cannot be listed ({error.strerror}): check its permissions")
            return
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            folder = entry.is_dir()
            if _hidden(entry.name) or not (folder or _is_image(entry.name)):
                continue
            problem = self._link_problem(entry.path, above) if entry.is_symlink() else ""
            if problem:
                yield self._refused(name, problem)
            elif folder:
                # a link's target is one of the folders above from here on, so that a loop of links ends
                yield from self._walk(name, (*above, os.path.realpath(entry.path)))
            else:
                yield self._file(name, entry.path)

    def _file(self, name: str, path: str) -> ImageFile:
        try:
            status = os.stat(path)
        except OSError as error:
            return self._refused(name, f"cannot be read ({error.strerror}): check its permissions")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return self._refused(name, "is no regular file: remove it")
        if status.st_size > _MAX_FILE:
            return self._refused(name, f"has {status.st_size} bytes, too many for an image: remove it")
        # The change time too: unpacking and copying tools set the modification time back, nothing sets this one.
        return ImageFile(self.root, name, status.st_size, f"{status.st_mtime_ns}-{status.st_ctime_ns}")


class _ZipTree(ImageTree):
    def __init__(self, path: Path, what: str) -> None:
        self.root = os.path.realpath(path)
        try:
            with zipfile.ZipFile(self.root) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{what} '{path}' cannot be read as a zip file ({error}): give a folder or download it again."
            ) from error
        seen: set[str] = set()
        for member in members:
            self._check(member, seen)
        self._members = {
            member.filename: member
            for member in members
            if not member.is_dir() and not any(_hidden(part) for part in member.filename.split("/"))
        }
        self._prefix = self._wrapper()
        # what lies directly in each folder: looking through all members for every class would take minutes
        self._folders: dict[str, set[str]] = {}
        self._images: dict[str, list[str]] = {}
        for member in members:
            self._place(member.filename)

    def _place(self, name: str) -> None:
        folder, _, base = name.removeprefix(self._prefix).rpartition("/")
        if not name.startswith(self._prefix) or any(_hidden(part) for part in (*folder.split("/"), base)):
            return
        if _is_image(base):
            self._images.setdefault(folder, []).append(name)
        while folder:
            above, _, below = folder.rpartition("/")
            self._folders.setdefault(above, set()).add(below)
            folder = above

    def _check(self, member: zipfile.ZipInfo, seen: set[str]) -> None:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
            raise UserError(
                f"'{self.root}' holds the member '{member.filename}', which would leave the folder it is unpacked in: "
                "do not use this file; get it from another place."
            )
        if name in seen:
            raise UserError(f"'{self.root}' holds two members named '{name}': pack it again with one of each.")
        seen.add(name)

    def _wrapper(self) -> str:
        """The folder that wraps everything, as most zips have one."""
        prefix = ""
        names = [name for name in self._members if _is_image(name)]
        while names:
            tops = {name[len(prefix) :].partition("/")[0] for name in names}
            deeper = f"{prefix}{min(tops)}/"
            # a wrapper holds folders; one that holds images is a class
            if len(tops) > 1 or not all(name.startswith(deeper) and "/" in name[len(deeper) :] for name in names):
                break
            prefix = deeper
        return prefix

    def folders(self, inside: str = "") -> list[str]:
        return sorted(self._folders.get(inside, ()))

    def files(self, inside: str = "") -> list[ImageFile]:
        found = [self._file(name) for name in self._images.get(inside, ())]
        for folder in self.folders(inside):
            found += self.files(f"{inside}/{folder}" if inside else folder)
        return sorted(found, key=lambda file: file.name)

    def find(self, name: str) -> ImageFile | None:
        full = self._prefix + name
        return self._file(full) if full in self._members else None

    def _file(self, name: str) -> ImageFile:
        member = self._members[name]
        problem = ""
        if member.flag_bits & 1:
            problem = "is encrypted: pack it again without a password"
        elif member.file_size > _MAX_FILE:
            problem = f"has {member.file_size} bytes, too many for an image: remove it"
        elif stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link: pack the file itself"
        problem = f"'{name}' in '{self.root}' {problem}." if problem else ""
        return ImageFile(self.root, name, member.file_size, f"{member.CRC:08x}", True, problem)


# ---- looking at


@dataclass(frozen=True)
class ImageLook:
    """How an image file becomes a sample.

    Args:
        size: side of the sample in pixels.
        channels: 1 for grey, 3 for RGB.
        rule: ``"crop"`` scales the shorter side and cuts out the centre, as for photographs, which are also turned
            upright by their EXIF tag; ``"resize"`` scales both sides, as for Omniglot.
        invert: whether dark becomes high, as for ink on paper.

    Raises:
        UserError: a size below 1, other channels, an unknown rule.
    """

    size: int
    channels: int = 3
    rule: str = "crop"
    invert: bool = False

    def __post_init__(self) -> None:
        check_positive(image_size=self.size)
        check_choice("rule", self.rule, ("crop", "resize"))
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), but is {self.channels}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of a sample."""
        return self.channels, self.size, self.size

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Looks at an image of any mode.

        Args:
            image: as opened.

        Returns:
            ``(C, H, W)`` uint8.
        """
        target = (self.size, self.size)
        if self.rule == "resize":
            image = _in_mode(image, self.channels).resize(target, Image.Resampling.BILINEAR)
        else:
            image = _in_mode(ImageOps.exif_transpose(image), self.channels)
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            image = image.resize(target, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        pixels = np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
        return np.array(255 - pixels if self.invert else pixels, order="C")  # of its own, PIL's is read-only

    def sample(self, image: Image.Image) -> Tensor:
        """What :meth:`EpisodicDataModule.convert_image` returns: ``(C, H, W)`` float32 in [0, 1].

        Args:
            image: as opened.

        Returns:
            The sample, as the training data look.
        """
        return torch.from_numpy(self(image)).to(torch.float32).div_(255)


def _in_mode(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: PIL would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 if image.mode == "F" and values.max(initial=0) <= 1 else 1 / 257 if values.max() > 255 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert(mode)
    # what lies behind is paper, not the black that transparent pixels often hold
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


_handles = threading.local()


def _zip(path: str) -> zipfile.ZipFile:
    """A zip file opened once per thread and process: a forked worker must not share its parent's file position."""
    opened: dict[tuple[str, int, int], zipfile.ZipFile] = _handles.__dict__.setdefault("opened", {})
    key = (path, os.getpid(), os.stat(path).st_mtime_ns)
    if key not in opened:
        if len(opened) >= 8:  # few data sets have more parts, and none should keep files open for ever
            opened.clear()
        opened[key] = zipfile.ZipFile(path)
    return opened[key]


class _UnreadableError(UserError):
    """The file could not be read now, which says nothing about its content."""


def _bytes(file: ImageFile) -> bytes:
    try:
        if file.zipped:
            return _zip(file.container).read(file.name)
        return Path(file.container, file.name).read_bytes()
    except OSError as error:
        raise _UnreadableError(f"{file.where} cannot be read ({error.strerror}): check its permissions.") from error
    except Exception as error:  # a damaged member raises whatever its decompressor does
        raise UserError(f"{file.where} cannot be unpacked ({error}); pack it again.") from error


def decode(file: ImageFile, look: ImageLook) -> NDArray[np.uint8]:
    """Reads one image file.

    Args:
        file: which.
        look: how to look at it. Large JPEGs are decoded at a fraction of their size, never below twice ``look.size``.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        UserError: with the path: unreadable, damaged or no image.
    """
    data = _bytes(file)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if look.rule == "crop":
                image.draft(None, (2 * look.size, 2 * look.size))  # keeps the mode
            return look(image)
    except Exception as error:  # a damaged file raises whatever its decoder does
        if isinstance(error, MemoryError):
            raise  # of this machine, not of the file
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise UserError(f"{file.where} cannot be read as an image ({reason}); remove it or save it again.") from error


def _check_header(file: ImageFile) -> None:
    """Refuses what is plainly no image, at the price of reading a few bytes."""
    if file.zipped:
        data: io.BytesIO | str = io.BytesIO(_bytes(file))
    else:
        data = os.path.join(file.container, file.name)
    try:
        with Image.open(data):
            pass
    except Exception as error:
        unreadable = isinstance(error, OSError) and error.errno is not None
        raise (_UnreadableError if unreadable else UserError)(
            f"{file.where} cannot be read as an image (not an image); remove it or save it again."
        ) from error


# ---- keeping


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
        _check_header(file)
        return np.empty(0, np.uint8)

    return _cached(files, "header", (0,), check, cache_dir).problems


def _cached(
    files: Sequence[ImageFile],
    what: str,
    shape: tuple[int, ...],
    make: Callable[[ImageFile], NDArray[np.uint8]],
    cache_dir: str | None,
) -> Decoded:
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {PIL.__version__} {what}\n".encode())
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
                final = final and not isinstance(error, _UnreadableError)

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


_TAIL = 16  # digits that give the length of the problems


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


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)


def _forget_old(folder: Path) -> None:
    """Removes what nobody used for a long time; a data set that is unpacked anew for every job would fill the disk."""
    for entry in folder.iterdir():
        if _CACHE_NAME.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _CACHE_DAYS * 86400:
                    entry.unlink()


# ---- serving


class ImageFileSource(Source):
    """Image files that are decoded whenever they are drawn: for sets that do not fit into memory.

    Args:
        files: which, of any number of folders and zips.
        labels: ``(N,)`` class of each file.
        class_names: names of the classes.
        name: how to call the set in messages.
        look: how to look at a file.
        groups: the group of each class.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        labels: Sequence[int] | NDArray[np.int64],
        class_names: Sequence[str],
        name: str,
        look: ImageLook,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(labels, class_names, name, groups)
        self.look = look
        # Arrays, not a list of records: counting references to Python objects would copy them into every worker.
        self._containers = sorted({(file.container, file.zipped) for file in files})
        position = {container: index for index, container in enumerate(self._containers)}
        self._container_of = np.array([position[file.container, file.zipped] for file in files], dtype=np.int32)
        self._names = np.array([file.name.encode("utf-8", "surrogateescape") for file in files], dtype=np.bytes_)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.look.shape

    def file(self, index: int) -> ImageFile:
        """Where a sample comes from.

        Args:
            index: of the sample.

        Returns:
            The file, without size and stamp.
        """
        container, zipped = self._containers[self._container_of[index]]
        return ImageFile(container, self._names[index].decode("utf-8", "surrogateescape"), zipped=zipped)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Decodes; in a worker process where the data module has some.

        Args:
            indices: int64 of any shape.
            device: where the samples are wanted.

        Returns:
            ``(*indices.shape, C, H, W)`` float32 in [0, 1].
        """
        images = np.empty((indices.numel(), *self.look.shape), np.uint8)
        for row, index in enumerate(indices.flatten().tolist()):
            images[row] = decode(self.file(index), self.look)
        samples = torch.from_numpy(images).view(*indices.shape, *self.look.shape).to(device)
        return samples.to(torch.float32).div_(255)


def open_images(
    classes: Mapping[str, Sequence[ImageFile]],
    look: ImageLook,
    name: str,
    *,
    on_bad_sample: OnBadSample = "error",
    cache_dir: str | None = None,
    memory_limit: int = MEMORY_LIMIT,
    groups: Mapping[str, str] | None = None,
) -> tuple[Source, int]:
    """A source of image files, checked.

    Args:
        classes: the files of each class.
        look: how to look at a file.
        name: how to call the set in messages.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out files that cannot be used and classes without any.
        cache_dir: see :func:`cache_folder`.
        memory_limit: bytes of decoded images up to which they are held in memory; beyond, files are decoded when they
            are drawn, and only their headers are checked here.
        groups: the group of each class.

    Returns:
        The source, and how many files and empty classes were left out.

    Raises:
        UserError: two classes of one name; with ``"error"`` also a file that cannot be used or an empty class.
    """
    check_class_names({name: list(classes)})
    found = [file for files in classes.values() for file in files]
    problems = [file.problem for file in found if file.problem]
    problems += [f"{name}: class '{one}' holds no image; remove it or add some." for one in classes if not classes[one]]
    files = [file for file in found if not file.problem]
    label_of = {one: index for index, one in enumerate(classes)}
    labels = np.array([label_of[one] for one in classes for file in classes[one] if not file.problem], dtype=np.int64)
    images: NDArray[np.uint8] | None = None
    bad: dict[int, str] = {}
    if not problems or on_bad_sample == "skip":  # else there is something to say already
        if len(files) * int(np.prod(look.shape)) <= memory_limit:
            images, bad = cached_images(files, look, cache_dir)
        else:
            bad = cached_headers(files, cache_dir)
    problems += bad.values()
    _report(problems, on_bad_sample)
    keep = np.setdiff1d(np.arange(len(files)), list(bad))
    kept, labels = np.unique(labels[keep], return_inverse=True)
    names = [list(classes)[index] for index in kept]
    group_names = [groups[one] for one in names] if groups is not None else None
    if images is None:
        return ImageFileSource([files[i] for i in keep], labels, names, name, look, group_names), len(problems)
    # a copy, so that the cache file can go while the data is in use
    data = images if images.flags.writeable and not bad else np.array(images) if not bad else images[keep]
    return TensorSource(torch.from_numpy(data), labels, names, name, group_names), len(problems)


def _report(problems: Sequence[str], on_bad_sample: str) -> None:
    if problems and on_bad_sample == "error":
        more = f", {len(problems)} here" if len(problems) > 1 else ""
        raise UserError(
            f"{problems[0].rstrip('.')}; or set on_bad_sample=skip to leave out and count what cannot be used{more}."
        )


def check_class_names(splits: Mapping[str, Sequence[str]]) -> None:
    """Refuses a class that stands in two splits, and two classes that some file systems cannot tell apart.

    Args:
        splits: class names by split.

    Raises:
        UserError: with both names.
    """
    seen: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            folded = unicodedata.normalize("NFC", name).casefold()
            if folded not in seen:
                seen[folded] = split, name
                continue
            other_split, other = seen[folded]
            if split != other_split:
                raise UserError(
                    f"class '{name}' of {split} is also in {other_split} (as '{other}'), but few-shot splits must have "
                    "different classes: move it, or give one folder of classes to have them split."
                )
            raise UserError(f"{split} has two classes of one name, '{other}' and '{name}': merge or rename them.")


# ---- fetching


def fetch(urls: Sequence[str], md5: str, target: Path) -> None:
    """Downloads a file from the first mirror that gives the right one.

    It is written beside its place and moved there when its checksum is right, so a half file is never taken for it.

    Args:
        urls: mirrors, in the order to try.
        md5: checksum, as the data set's authors publish it.
        target: where to put it.

    Raises:
        UserError: no mirror works; it says which file to put where.
    """
    check_writable(target.parent, "download folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                found = _copy(url, file)
            if found == md5:
                os.replace(temporary, target)
                return
            reasons.append(f"{url}: MD5 {found} instead of {md5}")
        except OSError as error:
            reasons.append(f"{url}: {error}")
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(reasons)}): get {urls[0]} on another machine and put it at "
        f"'{target}'."
    )


def _copy(url: str, file: io.BufferedWriter) -> str:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=30) as answer:
        while chunk := answer.read(2**18):
            size += len(chunk)
            if size > 4 * _MAX_FILE:
                raise OSError("the answer does not end")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
