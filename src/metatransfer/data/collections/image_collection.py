"""What collections of image files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from metatransfer.data.collections.base import Collection
from metatransfer.data.readers.image_files import ImageFile
from metatransfer.data.readers.image_source import ImageReader
from metatransfer.data.sources import Source, UnlabelledPart


class ImageCollection(Collection):
    """Labelled image files, which a subclass lists.

    Attributes:
        reader: how files are opened.
        path: the folder, zip file or table that the user gave, for messages.
    """

    reader: ImageReader
    path: str

    def unlabelled(self, path: str) -> tuple[Source, tuple[str, ...]]:
        """The images of a folder or zip file at any depth, named relative to it."""
        source, names, self.skipped["predict"] = self.reader.below(path)
        return source, names

    def convert(self, item: Image.Image) -> Tensor:
        """An image as the others look: ``(C, H, W)`` in [0, 1]."""
        return self.reader.look.sample(item)

    def protocol(self) -> dict[str, Any]:
        """The size of the images."""
        return {"image_size": self.reader.look.size, "channels": self.reader.look.channels}

    def _name(self, part: str) -> str:
        return f"'{self.path}'" if part == "all" else f"'{self.path}' {part}"

    def _withheld(self, files: Sequence[ImageFile], words: Sequence[str] | None, part: str) -> UnlabelledPart:
        """A part of a target domain: the files in the order that they are given in, ``words`` their classes."""
        source, kept = self.reader.in_order(files, self._name(part))
        self.skipped[part] = len(files) - len(kept)
        return UnlabelledPart(source, np.array(words, np.str_)[kept] if words is not None else None)
