"""What all data modules of labelled image files share: how the files are opened, and what is to be labelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.sources import Source, TensorSource
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
        problems = [file.problem for file in files if file.problem]
        files = [file for file in files if not file.problem]
        images = None
        if len(files) * math.prod(self.look.shape) <= self.memory_limit:
            images, bad = cached_images(files, self.look, self.cache_dir)
        else:
            bad = cached_headers(files, self.cache_dir)
        problems += bad.values()
        if problems and self.on_bad_sample == "error":
            raise UserError(
                f"{problems[0].rstrip('.')}; or set on_bad_sample=skip to label the others, {len(problems)} here "
                "cannot be used."
            )
        kept = [file for index, file in enumerate(files) if index not in bad]
        if not kept:
            raise UserError(f"predict folder '{path}': none of its {len(problems)} images can be used: mend them.")
        labels, name = np.zeros(len(kept), np.int64), f"'{path}'"
        names = tuple(file.name for file in kept)
        if images is None:
            return ImageFileSource(kept, labels, ["unlabelled"], name, self.look), names, len(problems)
        held = torch.from_numpy(np.delete(images, list(bad), axis=0))  # a copy of what is mapped from the cache
        return TensorSource(held, labels, ["unlabelled"], name), names, len(problems)


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
