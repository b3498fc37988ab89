"""Characters and digits that need no download."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from metatransfer.data.collections.image_collection import ImageCollection, by_content
from metatransfer.data.readers.digit_files import DIGIT_NAMES
from metatransfer.data.readers.glyph_file import (
    DIGITS_PATH,
    DIGITS_SHA256,
    GLYPHS_SHA256,
    SIDE,
    glyph_from_image,
    load_glyphs,
)
from metatransfer.data.readers.image_look import ImageLook, check_image_size
from metatransfer.data.readers.image_source import ImageReader
from metatransfer.data.sources import SPLITS, Collection, LazyParts, Source, TensorSource

_SIDE = 8  # of the original images, in pixels
_LEVELS = 16  # their largest value
_INK_BOX = 6 / 7  # the fraction of a side that the digits fill, as in glyphs


@dataclass(frozen=True)
class GlyphLook:
    """An image of one character, upright, cropped to its ink and scaled like the glyphs."""

    shape: ClassVar = (1, SIDE, SIDE)

    def __call__(self, image: Image.Image, /) -> NDArray[np.uint8]:
        """The sample of an image: ``(1, 28, 28)``, ink high."""
        return glyph_from_image(ImageOps.exif_transpose(image))[None]


class Glyphs(ImageCollection):
    """Typeset characters of many writing systems, 28x28, shipped with the package.

    Like Omniglot (Lake et al. 2015), but from typefaces. Training, validation and test have different writing systems,
    so test tasks consist of unseen scripts; about five shapes have a look-alike in another split. Image files are
    cropped to their ink and scaled like the glyphs.
    """

    divided_by = "class"

    def __init__(self) -> None:
        self.reader = ImageReader(GlyphLook())

    def parts(self) -> Mapping[str, Source]:
        """The characters of each split's writing systems."""
        return LazyParts(_characters, SPLITS)

    def protocol(self) -> dict[str, Any]:
        """The split by writing system and the data's checksum."""
        return {"split": "by writing system", "data_sha256": GLYPHS_SHA256}


def _characters(split: str) -> TensorSource:
    glyphs = load_glyphs()
    scripts = set(glyphs.splits[split])
    chosen = [index for index, script in enumerate(glyphs.scripts) if script in scripts]
    images = torch.from_numpy(glyphs.images[chosen])  # fancy indexing copies, so the tensor is writable
    return TensorSource(
        images.flatten(0, 1).unsqueeze(1),
        np.arange(len(chosen)).repeat(images.shape[1]),
        [f"{glyphs.scripts[index]} {glyphs.characters[index]}" for index in chosen],
        f"Glyphs {split}",
    )


class Digits(Collection):
    """1797 handwritten digits of 13 writers, 8x8 pixels each, shipped with scikit-learn (Alpaydin and Kaynak 1998).

    They are enlarged bilinearly and padded to look like the package's glyphs: ink is 1 and paper 0. They are undivided,
    and the writers are unknown, so all splits contain digits of all writers.

    Args:
        image_size: side of a sample in pixels; 8 leaves the images unchanged, without a margin.

    Raises:
        UserError: ``image_size`` is below 1 or above 4096.
    """

    def __init__(self, image_size: int = 28) -> None:
        check_image_size(image_size)
        self.image_size = image_size

    def parts(self) -> Mapping[str, Source]:
        """All digits, in memory: ``(1, image_size, image_size)``, classes ``"0"`` to ``"9"``."""
        from sklearn.datasets import load_digits  # takes a second

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
        images = np.stack([_enlarged(image, self.image_size) for image in pixels])[:, None]
        return {"all": TensorSource(torch.from_numpy(images), digits.target, DIGIT_NAMES, "the digits")}

    def protocol(self) -> dict[str, Any]:
        """The size of the images."""
        return {"image_size": self.image_size}


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """An image ``(8, 8)`` uint8, enlarged in the centre of ``(size, size)``."""
    if size == _SIDE:
        return image
    box = max(1, round(size * _INK_BOX))
    larger = np.zeros((size, size), np.uint8)
    start = (size - box) // 2
    resized = Image.fromarray(image).resize((box, box), Image.Resampling.BILINEAR)
    larger[start : start + box, start : start + box] = np.asarray(resized)
    return larger


class TypesetDigits(Collection):
    """4800 typeset digits, each digit five times in each of 96 typefaces, shipped with the package.

    They look like :class:`Glyphs` and :class:`Digits`: 28x28 pixels, ink is 1 and paper 0. The typefaces are those of
    :class:`Glyphs` that have ten distinct digits (see ``NOTICE-typeset-digits.md``). The first image of a digit is the
    typeface's own; the others are rotated, sheared, bent and drawn with other pens. They are divided by typeface: 68
    for training, 10 for validation and 18 for testing, with similar typefaces in the same split.

    Args:
        image_size: side of a sample in pixels; other sizes than 28 are resized bilinearly.

    Raises:
        UserError: ``image_size`` is below 1 or above 4096.
    """

    divided_by = "sample"

    def __init__(self, image_size: int = SIDE) -> None:
        check_image_size(image_size)
        self.image_size = image_size

    def parts(self) -> Mapping[str, Source]:
        """The digits of each split, in memory: ``(1, image_size, image_size)``, classes ``"0"`` to ``"9"``."""
        return {split: self._digits(split) for split in SPLITS}

    def protocol(self) -> dict[str, Any]:
        """The split by typeface and the size of the images."""
        return {"split": "as given", "image_size": self.image_size}

    def _digits(self, split: str) -> Source:
        digits = load_glyphs(DIGITS_PATH, DIGITS_SHA256)
        rows = np.flatnonzero(np.isin(digits.scripts, digits.splits[split]))
        images = digits.images[rows].reshape(-1, SIDE, SIDE)
        labels = np.repeat([int(digits.characters[row]) for row in rows], digits.images.shape[1])
        name = f"the typeset digits of {split}"
        data = torch.from_numpy(np.stack(list(map(ImageLook(self.image_size, 1), images))))
        return by_content(TensorSource(data, labels, DIGIT_NAMES, name))  # the order of the file reveals the labels
