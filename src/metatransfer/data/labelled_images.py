"""What all data modules of labelled image files share: how the files are opened, and what is to be labelled."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metatransfer.checks import check_choice, check_positive
from metatransfer.data.images import (
    MEMORY_LIMIT,
    ON_BAD_SAMPLE,
    ImageFile,
    ImageFileSource,
    ImageLook,
    OnBadSample,
    open_images,
    open_tree,
)
from metatransfer.data.images.cache import cached_headers, cached_images
from metatransfer.data.images.looking import file_bytes
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.sources import Source, TensorSource
from metatransfer.data.unlabelled import NO_CLASS, UnlabelledPart
from metatransfer.errors import UserError


@dataclass(frozen=True)
class ImageOpening:
    """How image files are opened, for every part of the data in the same way.

    Args:
        look: how to look at a file.
        on_bad_sample: ``"error"`` or ``"skip"``.
        cache_dir: where decoded images are kept.
        memory_limit: bytes of decoded images to hold.

    Raises:
        UserError: no positive ``memory_limit`` or an unknown ``on_bad_sample``.
    """

    look: ImageLook
    on_bad_sample: OnBadSample = "error"
    cache_dir: str | None = None
    memory_limit: int = MEMORY_LIMIT

    def __post_init__(self) -> None:
        check_positive(memory_limit=self.memory_limit)
        check_choice("on_bad_sample", self.on_bad_sample, ON_BAD_SAMPLE)

    def labelled(self, classes: Mapping[str, Sequence[ImageFile]], name: str) -> tuple[Source, int]:
        """A source of the files of some classes.

        Args:
            classes: the files of each.
            name: how to call them in messages.

        Returns:
            The source, and how many files and empty classes were left out.

        Raises:
            UserError: files that cannot be used, if these are not to be left out, or no others.
        """
        source, left_out = open_images(
            classes,
            self.look,
            name,
            on_bad_sample=self.on_bad_sample,
            cache_dir=self.cache_dir,
            memory_limit=self.memory_limit,
        )
        if not len(source):
            raise UserError(f"{name}: none of the {left_out} images and classes can be used: mend them.")
        return source, left_out

    def unlabelled(self, path: str | None) -> tuple[Source, tuple[str, ...], int]:
        """A source of all image files in a folder or zip file, whatever folder they are in.

        Args:
            path: the folder; ``None`` where the user gave none.

        Returns:
            The source, the relative names of its files, and how many were left out.

        Raises:
            UserError: no folder, no image in it, or images that cannot be used, if these are not to be left out.
        """
        if path is None:
            raise UserError("nothing is given to label: set predict to a folder of images (--data.predict FOLDER).")
        files = open_tree(path, "predict folder").files()
        if not files:
            raise UserError(f"predict folder '{path}' holds no image: give one with images in it, at any depth.")
        source, kept = self.in_order(files, f"predict folder '{path}'", "to label the others")
        return source, tuple(files[index].name for index in kept), len(files) - len(kept)

    def in_order(
        self, files: Sequence[ImageFile], name: str, skip: str = "to leave out and count what cannot be used"
    ) -> tuple[Source, NDArray[np.int64]]:
        """A source of image files in the order that they are given in, without labels.

        Args:
            files: which.
            name: how to call them in messages.
            skip: what ``on_bad_sample="skip"`` would do.

        Returns:
            The source, and the places of its samples among the files.

        Raises:
            UserError: images that cannot be used, if these are not to be left out, or no others.
        """
        whole = [index for index, file in enumerate(files) if not file.problem]
        problems = [file.problem for file in files if file.problem]
        images = None
        if len(whole) * math.prod(self.look.shape) <= self.memory_limit:
            images, bad = cached_images([files[index] for index in whole], self.look, self.cache_dir)
        else:
            bad = cached_headers([files[index] for index in whole], self.cache_dir)
        problems += bad.values()
        if problems and self.on_bad_sample == "error":
            raise UserError(
                f"{problems[0].rstrip('.')}; or set on_bad_sample=skip {skip}, {len(problems)} here cannot be used."
            )
        kept = np.array([index for place, index in enumerate(whole) if place not in bad], np.int64)
        if not len(kept):
            raise UserError(f"{name}: none of its {len(problems)} images can be used: mend them.")
        labels = np.zeros(len(kept), np.int64)
        if images is None:
            return ImageFileSource([files[index] for index in kept], labels, [NO_CLASS], name, self.look), kept
        held = torch.from_numpy(np.delete(images, list(bad), axis=0))  # a copy of what is mapped from the cache
        return TensorSource(held, labels, [NO_CLASS], name), kept


def by_name_and_content(files: Sequence[ImageFile]) -> list[int]:
    """An order of files that does not depend on the folders that they are in.

    Args:
        files: of any folders.

    Returns:
        Their places, sorted by the name of the file alone; those of one name by a hash of their content.
    """
    names = [file.name.rpartition("/")[2] for file in files]
    often = {name for name, count in Counter(names).items() if count > 1}

    def key(index: int) -> tuple[str, bytes]:
        return names[index], _content(files[index]) if names[index] in often else b""

    return sorted(range(len(files)), key=key)


def _content(file: ImageFile) -> bytes:
    """A hash; of nothing where the file cannot be read, which is refused or left out when it is opened."""
    try:
        return b"" if file.problem else hashlib.sha256(file_bytes(file)).digest()
    except UserError:
        return b""


class LabelledImages(LabelledDataModule):
    """Labelled images, of which a subclass says where they are listed.

    Attributes:
        opening: how files are opened.
        predict: folder of images to label, ``None`` where there is none.
        skipped: images left out, for each part that was opened.
    """

    opening: ImageOpening
    predict: str | None
    skipped: dict[str, int]

    def _withheld(
        self, files: Sequence[ImageFile], words: Sequence[str] | None, part: str, where: str
    ) -> UnlabelledPart:
        """A part of a target domain: the files in the order that they are given in, ``words`` their classes."""
        source, kept = self.opening.in_order(files, where if part == "all" else f"{where} {part}")
        self.skipped[part] = len(files) - len(kept)
        return UnlabelledPart(source, np.array(words, np.str_)[kept] if words is not None else None)

    def unlabelled(self) -> tuple[Source, tuple[str, ...]]:
        """The images of ``predict``, named relative to it.

        Raises:
            UserError: ``predict`` was not given, holds no image, or one that cannot be used.
        """
        source, names, self.skipped["predict"] = self.opening.unlabelled(self.predict)
        return source, names

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the size of the images."""
        look = self.opening.look
        return super().protocol() | {"image_size": look.size, "channels": look.channels}
