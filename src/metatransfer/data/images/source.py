"""Serves image files: from memory where they fit, else decoded whenever they are drawn."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.data.images.cache import cached_headers, cached_images
from metatransfer.data.images.finding import ImageFile
from metatransfer.data.images.looking import ImageLook, decode, file_bytes
from metatransfer.data.sources import Source, TensorSource
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
        """Where a sample comes from.

        Args:
            index: of the sample.

        Returns:
            The file, without size and stamp.
        """
        container, zipped = self._containers[self._container_of[index]]
        return ImageFile(container, self._names[index].decode("utf-8", "surrogateescape"), zipped=zipped)

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The bytes of the files, undecoded: decoders may differ in the last bit, files do not."""
        digest.update(repr(self.look).encode())
        for index in range(len(self)):
            digest.update(hashlib.sha256(file_bytes(self.file(index))).digest())

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
        memory_limit: bytes of decoded images to hold; beyond, headers are checked here and files decoded when drawn.
        groups: the group of each class.

    Returns:
        The source, and how many files and empty classes were left out.

    Raises:
        UserError: two classes of one name; with ``"error"`` also a file that cannot be used or an empty class.
    """
    files, labels, problems = _usable(classes, name)
    _report(problems, on_bad_sample)
    images, bad = _examined(files, look, cache_dir, memory_limit)
    _report(list(bad.values()), on_bad_sample)
    left_out = len(problems) + len(bad)
    kept, labels = np.unique(np.delete(labels, list(bad)), return_inverse=True)
    names = [list(classes)[index] for index in kept]
    group_names = [groups[one] for one in names] if groups is not None else None
    if images is None:
        files = [file for index, file in enumerate(files) if index not in bad]
        return ImageFileSource(files, labels, names, name, look, group_names), left_out
    return TensorSource(torch.from_numpy(images), labels, names, name, group_names), left_out


def _usable(
    classes: Mapping[str, Sequence[ImageFile]], name: str
) -> tuple[list[ImageFile], NDArray[np.int64], list[str]]:
    """The files that nothing is known against, the class of each, and what is wrong with the others."""
    check_class_names({name: list(classes)})
    found = [(label, file) for label, files in enumerate(classes.values()) for file in files]
    problems = [file.problem for _, file in found if file.problem]
    problems += [f"{name}: class '{one}' holds no image; remove it or add some." for one in classes if not classes[one]]
    labels = [label for label, file in found if not file.problem]
    return [file for _, file in found if not file.problem], np.array(labels, dtype=np.int64), problems


def _examined(
    files: Sequence[ImageFile], look: ImageLook, cache_dir: str | None, memory_limit: int
) -> tuple[NDArray[np.uint8] | None, dict[int, str]]:
    """The good images where they fit into memory, and what is wrong with which file."""
    if len(files) * math.prod(look.shape) > memory_limit:
        return None, cached_headers(files, cache_dir)
    images, bad = cached_images(files, look, cache_dir)
    if bad or not images.flags.writeable:  # a copy of what is mapped: the cache file can go while the data is in use
        images = np.delete(images, list(bad), axis=0)
    return images, bad


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
