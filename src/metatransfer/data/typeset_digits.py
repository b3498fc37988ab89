"""The digits 0 to 9 in many typefaces, shipped with the package, as labelled images.

The typefaces are those of the Glyphs that draw all ten digits, each differently from the others (see
``NOTICE-typeset-digits.md``). ``tools/build_typeset_digits.py`` makes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metatransfer.checks import check_positive
from metatransfer.data.glyphs import SIDE, Glyphs, decode_glyphs
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.pixels import PixelLook, by_content, gathered
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source, TensorSource
from metatransfer.errors import UserError

DIGITS_PATH = Path(__file__).with_name("typeset_digits.xz")
DIGITS_SHA256 = "6ca5c3aeb96b785e19fe38b877ab4ad9651d39f7ae54e8427b2f2dfad7460b3b"
DIGIT_NAMES = tuple("0123456789")


class TypesetDigitsDataModule(LabelledDataModule):
    """4800 typeset digits, each digit five times in each of 96 typefaces, shipped with the package.

    They look like the package's glyphs, and so like :class:`DigitsDataModule`: 28x28 pixels, ink is 1 on 0. The first
    image of a digit is the typeface's own drawing, the others are turned, sheared, bent and drawn with other pens. They
    come divided by typeface, 68 for training, 10 for validation and 18 for the test, so that no typeface, and none of
    its family or that looks almost the same, is in two splits; ``val_fraction`` and ``test_fraction`` are not looked
    at. The remaining arguments are those of :class:`LabelledDataModule`::

        lightning fit --config CONFIG.yaml --data TypesetDigitsDataModule

    Args:
        image_size: side of a sample in pixels; other sizes than 28 are scaled bilinearly.
        **labelled: arguments of :class:`LabelledDataModule`.

    Raises:
        UserError: an ``image_size`` below 1, or as :class:`LabelledDataModule`.
    """

    def __init__(self, image_size: int = SIDE, **labelled: Any) -> None:  # noqa: ANN401
        super().__init__(**labelled)
        check_positive(image_size=image_size)
        self.image_size = image_size

    def parts(self) -> Mapping[str, Source]:
        """The digits of each split, in memory: ``(1, image_size, image_size)``, classes ``"0"`` to ``"9"``."""
        digits = load_typeset_digits()
        look = PixelLook(self.image_size)
        found: dict[str, Source] = {}
        for split in SPLITS:
            rows = np.flatnonzero(np.isin(digits.scripts, digits.splits[split]))
            images = digits.images[rows].reshape(-1, SIDE, SIDE)
            labels = np.repeat([int(digits.characters[row]) for row in rows], digits.images.shape[1])
            name = f"the typeset digits of {split}"
            if self.image_size == SIDE:
                data = torch.from_numpy(images)[:, None]
            else:
                data = gathered(map(look, images), len(images), name)
            found[split] = by_content(
                TensorSource(data, labels, DIGIT_NAMES, name)
            )  # the file's order tells the labels
        return found

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the size of the images."""
        return super().protocol() | {"image_size": self.image_size}


def load_typeset_digits(path: Path | None = None) -> Glyphs:
    """Reads the shipped file, or another copy of it.

    Args:
        path: where the file lies; without it, beside this module (decoded once per process).

    Returns:
        The digits in the form of the Glyphs, C being the typefaces times the digits: in the place of the writing system
        of a character stands the family of its typeface, called by one of its typefaces.

    Raises:
        UserError: there is no such file, or its SHA-256 is not ``DIGITS_SHA256``.
    """
    return _shipped() if path is None else _read(Path(path))


@cache
def _shipped() -> Glyphs:
    return _read(DIGITS_PATH)


def _read(path: Path) -> Glyphs:
    """The file.

    Raises:
        UserError: it is missing or changed.
    """
    remedy = "reinstall metatransfer or rebuild it with tools/build_typeset_digits.py."
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"the typeset digits were expected at {path}, but there is no such file; {remedy}") from None
    found = hashlib.sha256(blob).hexdigest()
    if found != DIGITS_SHA256:
        raise UserError(f"the typeset digits {path} should have SHA-256 {DIGITS_SHA256} but have {found}; {remedy}")
    return decode_glyphs(blob)
