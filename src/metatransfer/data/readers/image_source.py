"""Serves image files: from memory where they fit, else decoded whenever they are drawn."""

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
        """Where a sample comes from."""
        container, zipped = self._containers[self._container_of[index]]
        return ImageFile(container, self._names[index].decode("utf-8", "surrogateescape"), zipped=zipped)

    def update_fingerprint(self, digest: hashlib._Hash, indices: NDArray[np.int64]) -> None:
        """The bytes of the files, undecoded: decoders may differ in the last bit, files do not."""
        digest.update(repr(self.look).encode())
        for index in indices.tolist():
            digest.update(hashlib.sha256(file_bytes(self.file(index))).digest())

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Decodes; in a worker process where the data module has some."""
        images = np.empty((indices.numel(), *self.look.shape), np.uint8)
        for row, index in enumerate(indices.flatten().tolist()):
            images[row] = decode(self.file(index), self.look)
        samples = torch.from_numpy(images).view(*indices.shape, *self.look.shape).to(device)
        return samples.to(torch.float32).div_(255)


@dataclass(frozen=True)
class ImageReader:
    """How image files are opened, for every part of the data in the same way.

    Args:
        look: how an image becomes a sample.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out files that cannot be used and classes without any.
        memory_limit: bytes of decoded images to hold; beyond, headers are checked and files decoded when drawn.

    Raises:
        UserError: a ``memory_limit`` that is not positive, or an unknown ``on_bad_sample``.
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
        """A source of the files of some classes.

        Raises:
            UserError: two classes of one name, no usable file, or files that cannot be used if they are not skipped.
        """
        check_class_names(list(classes), name)
        found = [(label, file) for label, files in enumerate(classes.values()) for file in files]
        problems = [
            f"{name}: class '{one}' holds no image; remove it or add some." for one in classes if not classes[one]
        ]
        images, kept, bad = self._examined([file for _, file in found], problems)
        problems += bad
        if not len(kept):
            raise UserError(f"{name}: none of the {len(problems)} images and classes can be used: fix them.")
        present, labels = np.unique([found[index][0] for index in kept], return_inverse=True)
        names = [list(classes)[index] for index in present]
        group_names = [groups[one] for one in names] if groups is not None else None
        return self._source(images, [found[index][1] for index in kept], labels, names, name, group_names), len(
            problems
        )

    def in_order(self, files: Sequence[ImageFile], name: str) -> tuple[Source, NDArray[np.int64]]:
        """A source of image files in the order that they are given in, without labels.

        Raises:
            UserError: no usable file, or files that cannot be used if they are not skipped.
        """
        images, kept, bad = self._examined(files, [])
        if not len(kept):
            raise UserError(f"{name}: none of its {len(bad)} images can be used: fix them.")
        labels = np.zeros(len(kept), np.int64)
        return self._source(images, [files[index] for index in kept], labels, [NO_CLASS], name, None), kept

    def below(self, path: str) -> tuple[Source, tuple[str, ...], int]:
        """All image files of a folder or zip file, whatever folder they are in.

        Raises:
            UserError: no folder, no image in it, or images that cannot be used.
        """
        files = open_tree(path, "predict folder").files()
        if not files:
            raise UserError(f"predict folder '{path}' holds no image: give one with images in it, at any depth.")
        source, kept = self.in_order(files, f"predict folder '{path}'")
        return source, tuple(files[index].name for index in kept), len(files) - len(kept)

    def _examined(
        self, files: Sequence[ImageFile], others: Sequence[str]
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.int64], list[str]]:
        """The good images if they fit into memory, the places of the good files, and what is wrong with the others."""
        problems = [file.problem for file in files if file.problem]
        self._report([*problems, *others])
        whole = [index for index, file in enumerate(files) if not file.problem]
        usable = [files[index] for index in whole]
        images = None
        if len(usable) * math.prod(self.look.shape) > self.memory_limit:
            bad = cached_headers(usable)
        else:
            images, bad = cached_images(usable, self.look)
            # a copy of what is mapped: the cache file can go while the data is in use
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
    """Raises an error for two classes that some file systems cannot tell apart.

    Raises:
        UserError: with both names.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(f"{where} has two classes of one name, '{other}' and '{name}': merge or rename them.")


def by_name_and_content(files: Sequence[ImageFile]) -> list[int]:
    """An order of files that does not depend on the folders that they are in."""
    names = [file.name.rpartition("/")[2] for file in files]
    often = {name for name, count in Counter(names).items() if count > 1}
    return sorted(range(len(files)), key=lambda index: (names[index], _content(files[index], names[index] in often)))


def _content(file: ImageFile, needed: bool) -> bytes:
    """A hash; of nothing where the file cannot be read, which is reported when it is opened."""
    if not needed or file.problem:
        return b""
    with contextlib.suppress(UserError):
        return hashlib.sha256(file_bytes(file)).digest()
    return b""
