"""Scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from metatransfer.checks import check_positive
from metatransfer.data.collections.base import Collection
from metatransfer.data.sources import Source, TensorSource

DIGIT_NAMES = tuple("0123456789")
_SIDE = 8  # of the images as they come, in pixels
_LEVELS = 16  # their largest value
_INK_BOX = 6 / 7  # part of a side that the digits fill, as glyphs do


class Digits(Collection):
    """1797 handwritten digits of 13 writers, 8x8 pixels each, shipped with scikit-learn (Alpaydin and Kaynak 1998).

    They are enlarged bilinearly and given a margin, so that they look like the package's glyphs: ink is 1 on 0. They
    come undivided and without their writers, so all splits have digits of all writers.

    Args:
        image_size: side of a sample in pixels; 8 leaves the images as they come, without a margin.

    Raises:
        UserError: an ``image_size`` below 1.
    """

    def __init__(self, image_size: int = 28) -> None:
        check_positive(image_size=image_size)
        self.image_size = image_size

    def parts(self) -> Mapping[str, Source]:
        """All digits, in memory: ``(1, image_size, image_size)``, classes ``"0"`` to ``"9"``."""
        from sklearn.datasets import load_digits  # takes a second

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
        images = np.stack([enlarged(image, self.image_size) for image in pixels])[:, None]
        return {"all": TensorSource(torch.from_numpy(images), digits.target, DIGIT_NAMES, "the digits")}

    def protocol(self) -> dict[str, Any]:
        """The size of the images."""
        return {"image_size": self.image_size}


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """An image ``(8, 8)`` uint8 in the middle of a larger one, ``(size, size)``."""
    if size == _SIDE:
        return image
    box = max(1, round(size * _INK_BOX))
    larger = np.zeros((size, size), np.uint8)
    start = (size - box) // 2
    resized = Image.fromarray(image).resize((box, box), Image.Resampling.BILINEAR)
    larger[start : start + box, start : start + box] = np.asarray(resized)
    return larger
