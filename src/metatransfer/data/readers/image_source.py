"""Sources of image files, in memory and cached if they fit, otherwise decoded when they are drawn."""

import contextlib
import hashlib
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice, check_positive
from metatransfer.data.readers.image_files import ImageFile
from metatransfer.data.readers.image_look import Look, UnreadableError, decode, file_bytes, white_of
from metatransfer.data.sources import NO_CLASS, Source, TensorSource
from metatransfer.errors import UserError
from metatransfer.storage import cache_file, cache_folder, forget_old, keep_array, kept_array

MEMORY_LIMIT = 2 * 2**30
_FORMAT, _KIND = "3", "images"  # of the cache
_DARK, _LOOKED_AT = 64, 8  # white of 14 bits in 16; images that are decoded to find out
OnBadSample = Literal["error", "skip"]
ON_BAD_SAMPLE: tuple[str, ...] = get_args(OnBadSample)


class ImageFileSource(Source):
    """Image files that are decoded each time they are drawn, for data sets that do not fit into memory."""

    _is_finite = True

    def __init__(
        self,
        files: Sequence[ImageFile],
        labels: Sequence[int] | NDArray[np.int64],
        class_names: Sequence[str],
        name: str,
        look: Look,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(labels, class_names, name, groups)
        self.look = look
        # arrays, not a list: the reference counts of Python objects would make every worker copy them
        self._containers = sorted({(file.container, file.zipped) for file in files})
        position = {container: index for index, container in enumerate(self._containers)}
        self._container_of = np.array([position[file.container, file.zipped] for file in files], dtype=np.int32)
        self._names = np.array([file.name.encode("utf-8", "surrogateescape") for file in files], dtype=np.bytes_)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.look.shape

    def file(self, index: int) -> ImageFile:
        """The file of a sample."""
        container, zipped = self._containers[self._container_of[index]]
        return ImageFile(container, self._names[index].decode("utf-8", "surrogateescape"), zipped=zipped)

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The bytes of the files, because decoders may differ in the last bit."""
        digest.update(repr(self.look).encode())
        for index in indices.tolist():
            digest.update(hashlib.sha256(file_bytes(self.file(index))).digest())

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Decodes the files."""
        images = np.empty((indices.numel(), *self.look.shape), np.uint8)
        for row, index in enumerate(indices.flatten().tolist()):
            images[row] = decode(self.file(index), self.look)
        samples = torch.from_numpy(images).view(*indices.shape, *self.look.shape).to(device)
        return samples.to(torch.float32).div_(255)


@dataclass(frozen=True)
class _Header:
    """Checks that a file is an image, without decoding it."""

    shape = (0,)

    def __call__(self, image: Image.Image, /) -> NDArray[np.uint8]:
        return np.empty(0, np.uint8)


@dataclass(frozen=True)
class ImageReader:
    """How image files are opened, the same for all parts of the data.

    Args:
        look: how an image becomes a sample.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out unusable files and classes without a usable one.
        memory_limit: maximum bytes of decoded images in memory. Beyond it, only headers are checked and files are
            decoded when they are drawn.
    """

    look: Look
    on_bad_sample: OnBadSample = "error"
    memory_limit: int = MEMORY_LIMIT

    def __post_init__(self) -> None:
        check_positive(memory_limit=self.memory_limit)
        check_choice("on_bad_sample", self.on_bad_sample, ON_BAD_SAMPLE)

    def labelled(
        self, classes: Mapping[str, Sequence[ImageFile]], name: str, groups: Mapping[str, str] | None = None
    ) -> tuple[Source, int]:
        """A source of the files of some classes, and the number of files and classes left out."""
        check_class_names(list(classes), name)
        found = [(label, file) for label, files in classes.items() for file in files]
        empty = [one for one in classes if not classes[one]]
        self._report([f"{name}: class '{one}' has no images; remove it or add some." for one in empty])
        source, kept = self._source([file for _, file in found], [label for label, _ in found], name, groups)
        return source, len(found) - len(kept) + len(empty)

    def in_order(self, files: Sequence[ImageFile], name: str) -> tuple[Source, NDArray[np.int64]]:
        """A source of image files in the given order, without labels, and the places of the usable files."""
        return self._source(files, [NO_CLASS] * len(files), name)

    def _source(
        self, files: Sequence[ImageFile], words: Sequence[str], name: str, groups: Mapping[str, str] | None = None
    ) -> tuple[Source, NDArray[np.int64]]:
        """The usable files, in memory if they fit, with classes in the order of ``words``; and their places."""
        self._report([file.problem for file in files if file.problem])
        whole = [index for index, file in enumerate(files) if not file.problem]
        usable = [files[index] for index in whole]
        in_memory = len(usable) * math.prod(self.look.shape) <= self.memory_limit
        images, bad = cached_images(usable, self.look if in_memory else _Header())
        self._report(list(bad.values()))
        kept = np.delete(np.array(whole, np.int64), list(bad))
        if not len(kept):
            raise UserError(f"{name}: none of its {len(files)} images can be used: fix them.")
        names = list(dict.fromkeys(words[index] for index in kept.tolist()))
        number = {name: place for place, name in enumerate(names)}
        places = np.array([number[words[index]] for index in kept.tolist()], np.int64)
        of_class = [groups[one] for one in names] if groups is not None else None
        chosen = [files[index] for index in kept.tolist()]
        if not in_memory:
            some = [chosen[index] for index in np.linspace(0, len(chosen) - 1, _LOOKED_AT).astype(int)]
            _warn_of_dark(*_readable(some, self.look), self.look, name)
            return ImageFileSource(chosen, places, names, name, self.look, of_class), kept
        # copies a mapped array, because the cache file may be removed while the data is in use
        images = np.delete(images, list(bad), axis=0) if bad or not images.flags.writeable else images
        _warn_of_dark(chosen, images, self.look, name)
        return TensorSource(torch.from_numpy(images), places, names, name, of_class), kept

    def _report(self, problems: Sequence[str]) -> None:
        if problems and self.on_bad_sample == "error":
            more = f", {len(problems)} here" if len(problems) > 1 else ""
            raise UserError(
                f"{problems[0].rstrip('.')}; or set on_bad_sample=skip to leave out and count what cannot be used"
                f"{more}."
            )


def check_class_names(names: Iterable[str], where: str) -> None:
    """Raises an error if some file systems would not distinguish two class names."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{where} has two classes of the same name, '{other}' and '{name}': merge or rename them.")


def by_name_and_content(files: Sequence[ImageFile]) -> list[int]:
    """The order of files by name and content, independent of their folders."""
    names = [file.name.rpartition("/")[2] for file in files]
    often = {name for name, count in Counter(names).items() if count > 1}
    return sorted(range(len(files)), key=lambda index: (names[index], _content(files[index], names[index] in often)))


def _content(file: ImageFile, needed: bool) -> bytes:
    if needed and not file.problem:
        with contextlib.suppress(UserError):  # reported when the file is opened
            return hashlib.sha256(file_bytes(file)).digest()
    return b""


def cached_images(files: Sequence[ImageFile], look: Look) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decodes image files, or reads them from the cache (memory-mapped).

    The key is the look and the relative name, size and stamp of every file, in order. So a folder may be moved, and any
    change of a file is noticed. Processes that start together write the same bytes; there is no lock that a killed
    process could leave behind. If the cache cannot be written, a warning is shown once.

    Returns:
        ``(N, C, H, W)``, and the problem of each unusable file by position.
    """
    key = [f"{file.name}\0{file.size}\0{file.stamp}" for file in files]
    path = cache_file(cache_folder(_KIND), _KIND, _FORMAT, PIL.__version__, repr(look), *key)
    found = kept_array(path, (len(files), *look.shape), np.uint8, mapped=True)
    if found is not None:
        return found.array, {int(index): str(problem) for index, problem in found.note.items()}
    images, problems = _decoded(files, look)
    if not any(isinstance(problem, UnreadableError) for problem in problems.values()):
        try:
            keep_array(path, images, {index: str(problem) for index, problem in problems.items()})
            forget_old(path.parent, _KIND)
        except OSError as error:
            _warn_once(
                f"decoded images cannot be cached in '{path.parent}' ({error.strerror}), so every run decodes them "
                "again: set the environment variable METATRANSFER_CACHE to another folder."
            )
    return images, {index: str(problem) for index, problem in problems.items()}


def _decoded(files: Sequence[ImageFile], look: Look) -> tuple[NDArray[np.uint8], dict[int, UserError]]:
    images = np.zeros((len(files), *look.shape), np.uint8)
    problems: dict[int, UserError] = {}

    def fill(start: int) -> None:
        for index in range(start, min(start + 256, len(files))):
            try:
                images[index] = decode(files[index], look)
            except UserError as error:
                problems[index] = error

    # threads, not processes: decoders release the GIL, and nothing is copied
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(fill, range(0, len(files), 256)))
    return images, dict(sorted(problems.items()))


def _readable(files: Sequence[ImageFile], look: Look) -> tuple[list[ImageFile], NDArray[np.uint8]]:
    """The files that can be decoded, and their images; others are an error only when they are drawn."""
    found: list[tuple[ImageFile, NDArray[np.uint8]]] = []
    for file in files:
        with contextlib.suppress(UserError):
            found.append((file, decode(file, look)))
    images = [image for _, image in found]
    return [file for file, _ in found], np.stack(images) if images else np.empty((0, *look.shape), np.uint8)


def _warn_of_dark(files: Sequence[ImageFile], images: NDArray[np.uint8], look: Look, name: str) -> None:
    """Warns if images of more than 8 bits are all so dark that they probably use fewer bits than they store."""
    if not files or getattr(look, "bits", 0) is not None or getattr(look, "invert", False) or images.max() > _DARK:
        return
    brightest = np.argsort(-images.reshape(len(images), -1).max(1).astype(int), kind="stable")[:_LOOKED_AT]
    largest, white = max(decode(files[index], _range) for index in brightest)
    used = next((bits for bits in (8, 10, 12, 14) if largest < 2**bits), 16)
    if 255 < largest <= white >> 2:
        _warn_once(
            f"{name}: the largest value of the brightest image is {largest} of {white}, so all images are dark: if they"
            f" use fewer bits than they store, set bits, here probably to {used}; if not, set it to "
            f"{white.bit_length()}."
        )


def _range(image: Image.Image) -> tuple[int, int]:
    """The largest value of an image, and the value of white."""
    return int(np.asarray(image).max()), white_of(image)


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
