"""The digits 0 to 9 in many typefaces, shipped with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from metatransfer.checks import check_positive
from metatransfer.data.collections.base import Collection
from metatransfer.data.collections.digits import DIGIT_NAMES
from metatransfer.data.readers.glyph_file import SIDE, load_typeset_digits
from metatransfer.data.readers.pixels import PixelLook, by_content, gathered
from metatransfer.data.sources import SPLITS, Source, TensorSource


class TypesetDigits(Collection):
    """4800 typeset digits, each digit five times in each of 96 typefaces, shipped with the package.

    They look like the package's glyphs, and so like :class:`Digits`: 28x28 pixels, ink is 1 on 0. The typefaces are
    those of the Glyphs that draw all ten digits, each differently from the others (see ``NOTICE-typeset-digits.md``).
    The first image of a digit is the typeface's own drawing, the others are turned, sheared, bent and drawn with other
    pens. They come divided by typeface, 68 for training, 10 for validation and 18 for the test, so that no typeface,
    and none of its family or that looks almost the same, is in two splits.

    Args:
        image_size: side of a sample in pixels; other sizes than 28 are scaled bilinearly.

    Raises:
        UserError: an ``image_size`` below 1.
    """

    divided_by = "sample"

    def __init__(self, image_size: int = SIDE) -> None:
        check_positive(image_size=image_size)
        self.image_size = image_size

    def parts(self) -> Mapping[str, Source]:
        """The digits of each split, in memory: ``(1, image_size, image_size)``, classes ``"0"`` to ``"9"``."""
        return {split: self._digits(split) for split in SPLITS}

    def protocol(self) -> dict[str, Any]:
        """The split by typeface and the size of the images."""
        return {"split": "as given", "image_size": self.image_size}

    def _digits(self, split: str) -> Source:
        digits = load_typeset_digits()
        rows = np.flatnonzero(np.isin(digits.scripts, digits.splits[split]))
        images = digits.images[rows].reshape(-1, SIDE, SIDE)
        labels = np.repeat([int(digits.characters[row]) for row in rows], digits.images.shape[1])
        name = f"the typeset digits of {split}"
        if self.image_size == SIDE:
            data = torch.from_numpy(images)[:, None]
        else:
            data = gathered(map(PixelLook(self.image_size), images), len(images), name)
        return by_content(TensorSource(data, labels, DIGIT_NAMES, name))  # the file's order tells the labels
