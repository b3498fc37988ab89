"""Sources of image files, in memory if they fit, otherwise decoded when they are drawn."""

from __future__ import annotations

import contextlib
import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_choice, check_positive
from metatransfer.data.readers.image_cache import cached_headers, cached_images
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import ImageLook, decode, file_bytes
from metatransfer.data.sources import NO_CLASS, Source, TensorSource
from metatransfer.errors import UserError

MEMORY_LIMIT = 2 * 2**30
OnBadSample = Literal["error", "skip"]
ON_BAD_SAMPLE: tuple[str, ...] = get_args(OnBadSample)


class ImageFileSource(Source):
    """Image files that are decoded each time they are drawn, for data sets that do not fit into memory.

    Args:
        files: N files from any folders and zip files.
        labels: ``(N,)`` class of each file.
        class_names: names of the classes.
        name: name of the data set in messages.
        look: how a file becomes a sample.
        groups: group of each class.
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

    def update_fingerprint(self, digest: hashlib._Hash, indices: NDArray[np.int64]) -> None:
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
class ImageReader:
    """How image files are opened, the same for all parts of the data.

    Args:
        look: how an image becomes a sample.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out unusable files and classes without a usable one.
        memory_limit: maximum bytes of decoded images in memory. Beyond it, only headers are checked and files are
            decoded when they are drawn.

    Raises:
        UserError: ``memory_limit`` is not positive, or ``on_bad_sample`` is unknown.
    """

    look: ImageLook
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
        found = [(label, file) for label, files in enumerate(classes.values()) for file in files]
        problems = [
            f"{name}: class '{one}' has no images; remove it or add some." for one in classes if not classes[one]
        ]
        images, kept, bad = self._examined([file for _, file in found], problems)
        problems += bad
        if not len(kept):
            raise UserError(f"{name}: none of the {len(problems)} images and classes can be used: fix them.")
        present, labels = np.unique([found[index][0] for index in kept], return_inverse=True)
        names = [list(classes)[index] for index in present]
        group_names = [groups[one] for one in names] if groups is not None else None
        source = self._source(images, [found[index][1] for index in kept], labels, names, name, group_names)
        return source, len(problems)

    def in_order(self, files: Sequence[ImageFile], name: str) -> tuple[Source, NDArray[np.int64]]:
        """A source of image files in the given order, without labels, and the places of the usable files."""
        images, kept, bad = self._examined(files, [])
        if not len(kept):
            raise UserError(f"{name}: none of its {len(bad)} images can be used: fix them.")
        labels = np.zeros(len(kept), np.int64)
        return self._source(images, [files[index] for index in kept], labels, [NO_CLASS], name, None), kept

    def below(self, path: str) -> tuple[Source, tuple[str, ...], int]:
        """All image files of a folder or zip file at any depth, their names, and the number left out."""
        files = open_tree(path, "predict folder").files()
        if not files:
            raise UserError(f"predict folder '{path}' holds no image: give a folder with images, at any depth.")
        source, kept = self.in_order(files, f"predict folder '{path}'")
        return source, tuple(files[index].name for index in kept), len(files) - len(kept)

    def _examined(
        self, files: Sequence[ImageFile], others: Sequence[str]
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.int64], list[str]]:
        """The usable images if they fit into memory, the places of the usable files, and the problems of the others."""
        problems = [file.problem for file in files if file.problem]
        self._report([*problems, *others])
        whole = [index for index, file in enumerate(files) if not file.problem]
        usable = [files[index] for index in whole]
        images = None
        if len(usable) * math.prod(self.look.shape) > self.memory_limit:
            bad = cached_headers(usable)
        else:
            images, bad = cached_images(usable, self.look)
            # copies a mapped array, because the cache file may be removed while the data is in use
            images = np.delete(images, list(bad), axis=0) if bad or not images.flags.writeable else images
        self._report(list(bad.values()))
        return images, np.delete(np.array(whole, np.int64), list(bad)), [*problems, *bad.values()]

    def _report(self, problems: Sequence[str]) -> None:
        if problems and self.on_bad_sample == "error":
            more = f", {len(problems)} here" if len(problems) > 1 else ""
            raise UserError(
                f"{problems[0].rstrip('.')}; or set on_bad_sample=skip to leave out and count what cannot be used"
                f"{more}."
            )

    def _source(
        self,
        images: NDArray[np.uint8] | None,
        files: Sequence[ImageFile],
        labels: NDArray[np.int64],
        class_names: Sequence[str],
        name: str,
        groups: Sequence[str] | None,
    ) -> Source:
        if images is None:
            return ImageFileSource(files, labels, class_names, name, self.look, groups)
        return TensorSource(torch.from_numpy(images), labels, class_names, name, groups)


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
