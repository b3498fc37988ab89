"""The characters and digits that are shipped with the package.

Each character has the same number of 28x28 renderings in several openly licensed typefaces (see ``NOTICE-glyphs.md``
and ``NOTICE-typeset-digits.md``). ``tools/build_glyphs.py`` and ``tools/build_typeset_digits.py`` make the files.
"""

import hashlib
import json
import lzma
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metatransfer.errors import UserError

_DATA = Path(__file__).parents[1]
GLYPHS_PATH = _DATA / "glyphs.xz"
GLYPHS_SHA256 = "5859b97388010d7f29e75c2d373b6ab4e07aa90aebf4001ed21e7381ddce4c16"
DIGITS_PATH = _DATA / "typeset_digits.xz"
DIGITS_SHA256 = "6ca5c3aeb96b785e19fe38b877ab4ad9651d39f7ae54e8427b2f2dfad7460b3b"
SIDE = 28  # side of an image in pixels
BOX = 23  # the longer side of a glyph's ink box in `glyph_from_image`
LEVELS = 8  # grey levels that the file keeps
_INK = 64  # minimum grey value of ink when the ink box is searched
_CONTRAST = 24.0  # minimum difference between paper and ink, of 255; images below it are blank


class GlyphData(NamedTuple):
    """The decoded data set.

    Attributes:
        images: ``(C, R, 28, 28)`` uint8, 0 = paper, 255 = ink, read-only.
        characters: C one-character strings.
        scripts: The English name of each character's writing system, C strings.
        splits: ``"train"``, ``"val"`` and ``"test"``, each with the names of its writing systems.
        codes: The ISO 15924 code of each writing system, by English name.
        typefaces: The typefaces used, T strings.
        typeface_of: ``(C, R)`` uint8, which of the typefaces each rendering is drawn from.
    """

    images: NDArray[np.uint8]
    characters: tuple[str, ...]
    scripts: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    codes: dict[str, str]
    typefaces: tuple[str, ...]
    typeface_of: NDArray[np.uint8]


@cache
def load_glyphs(path: Path = GLYPHS_PATH, checksum: str = GLYPHS_SHA256) -> GlyphData:
    """Reads the characters, made by ``tools/build_glyphs.py``, or the digits of the other file."""
    if not path.exists():
        raise UserError(f"'{path}' belongs to metatransfer, but there is no such file: reinstall metatransfer.")
    blob = path.read_bytes()
    found = hashlib.sha256(blob).hexdigest()
    if found != checksum:
        raise UserError(f"'{path}' should have SHA-256 {checksum} but has {found}: reinstall metatransfer.")
    return decode_glyphs(blob)


def decode_glyphs(blob: bytes) -> GlyphData:
    """Decodes the bytes written by ``encode_glyphs`` in ``tools/build_glyphs.py``.

    The xz stream contains a 4-byte little-endian length, that many bytes of JSON, ``C * R`` typeface indices and
    ``C * R * 784`` grey levels of 0..7, in the top bits of a byte each, which LZMA compresses best.
    """
    raw = lzma.decompress(blob)
    start = 4 + int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4:start])
    count, renderings = len(head["characters"]), int(head["renderings"])
    body = np.frombuffer(raw, np.uint8, offset=start)
    typeface_of = body[: count * renderings].reshape(count, renderings)
    greys = np.array([round(255 * (byte >> 5) / (LEVELS - 1)) for byte in range(256)], np.uint8)
    images = greys[body[count * renderings :]].reshape(count, renderings, SIDE, SIDE)
    images.flags.writeable = False
    names = {s["name"]: s for s in head["scripts"]}
    splits = ("train", "val", "test")
    return GlyphData(
        images=images,
        characters=tuple(head["characters"]),
        scripts=tuple(n for n, s in names.items() for _ in range(s["count"])),
        splits={k: tuple(n for n, s in names.items() if s["split"] == k) for k in splits},
        codes={n: s["code"] for n, s in names.items()},
        typefaces=tuple(head["typefaces"]),
        typeface_of=typeface_of,
    )


def normalise_ink(ink: NDArray[np.uint8], box: int = BOX, shift: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """Crops to the ink, scales its longer side to ``box`` and centres it in 28x28; the darkest pixel becomes 255."""
    rows, columns = np.flatnonzero((ink >= _INK).any(1)), np.flatnonzero((ink >= _INK).any(0))
    crop = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = box / max(crop.shape)
    height, width = (max(1, round(side * scale)) for side in crop.shape)
    small = Image.fromarray(crop).resize((width, height), Image.Resampling.HAMMING)
    grey = np.asarray(small, np.float64)
    grey = np.rint(grey * (255.0 / max(grey.max(), 1.0)))
    top, left = (SIDE - height) // 2 + shift[0], (SIDE - width) // 2 + shift[1]
    out = np.zeros((SIDE, SIDE), np.uint8)
    out[top : top + height, left : left + width] = grey
    return out


def glyph_from_image(image: Image.Image) -> NDArray[np.uint8]:
    """Converts an image of one character into one like those of the data set."""
    for backdrop in (255, 0):  # white ink on a transparent background is visible only on black
        grey = _grey(image, backdrop)
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        paper = float(np.median(border))
        middle = (float(grey.min()) + float(grey.max())) / 2
        ink = np.clip(paper - grey if paper > middle else grey - paper, 0, None)
        if ink.max() >= _CONTRAST:
            return normalise_ink(np.rint(ink * (255.0 / ink.max())).astype(np.uint8))
    raise UserError(
        f"the image of {image.width}x{image.height} pixels is blank: give a dark character on a light background, "
        "or a light one on a dark background."
    )


def _grey(image: Image.Image, backdrop: int) -> NDArray[np.float64]:
    """The grey values, 0..255; modes of more than 8 bits are stretched to that range."""
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image, np.float64)
        span = float(deep.max() - deep.min()) if deep.size else 0.0
        return (deep - deep.min()) * (255.0 / span) if span > 0 else np.zeros(deep.shape)
    flat = Image.new("RGBA", image.size, (backdrop, backdrop, backdrop, 255))
    flat.alpha_composite(image.convert("RGBA"))
    return np.asarray(flat.convert("L"), np.float64)
