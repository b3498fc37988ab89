"""Build the typeset digits from the fonts of the Glyphs data set: the same manifest gives the same bytes.

Every typeface of ``glyph_fonts.toml`` that draws all ten digits is used, but for those whose digits are another one's.
Fetching, drawing and packing are those of ``build_glyphs.py``, in the environment of ``requirements-glyphs.txt``.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from build_glyphs import (
    DATA,
    PACKAGE,
    BuildError,
    Font,
    appearance,
    bend,
    coverage,
    draw_large,
    encode_glyphs,
    fetch_font,
    notice,
    restroke,
)
from numpy.typing import NDArray
from PIL import Image

DIGITS = "0123456789"
RENDERINGS = 5  # of each digit in each typeface; the first is the typeface's own drawing
SAME = 0.985  # typefaces whose blurred digits have a higher cosine draw them alike; one of them is enough
KIN = 0.98  # those above this are of one family, whatever they are called
# words of a name that tell apart members of one family
WEIGHTS = {"Regular", "Bold", "Book", "Light", "SemiBold"}
# every tenth family but the largest, from these places on, is for validation and for the test
VAL, TEST = (4,), (2, 7)


class Typeface(NamedTuple):
    """A typeface with its ten digits and how they look."""

    font: Font
    inks: tuple[NDArray[np.uint8], ...]
    look: NDArray[np.float64]


def typefaces(fonts: Sequence[Font]) -> list[Typeface]:
    """Choose the typefaces with ten different digits that no earlier one draws alike."""
    chosen: list[Typeface] = []
    for font in fonts:
        if not {ord(digit) for digit in DIGITS} <= coverage(font.path):
            continue
        inks = [draw_large(font.path, digit) for digit in DIGITS]
        drawn = [ink for ink in inks if ink is not None]
        if len(drawn) < len(DIGITS) or len({ink.tobytes() for ink in drawn}) < len(DIGITS):
            continue
        look = np.concatenate([appearance(ink) for ink in drawn]) / np.sqrt(len(DIGITS))
        if all(look @ other.look < SAME for other in chosen):
            chosen.append(Typeface(font, tuple(drawn), look))
    return chosen


def families(chosen: Sequence[Typeface]) -> dict[str, list[int]]:
    """Group the typefaces: those of one name but for the weight, and those that look almost the same."""
    stems = [" ".join(w for w in re.sub(r"\(.*\)", "", t.font.name).split() if w not in WEIGHTS) for t in chosen]
    family = list(range(len(chosen)))
    for i, one in enumerate(chosen):
        for j in range(i):
            if (stems[i] == stems[j] or one.look @ chosen[j].look > KIN) and family[i] != family[j]:
                merged, kept = max(family[i], family[j]), min(family[i], family[j])
                family = [kept if f == merged else f for f in family]
    members: dict[str, list[int]] = {}
    for i, f in enumerate(family):
        members.setdefault(chosen[f].font.name, []).append(i)
    return members


def divide(members: dict[str, list[int]]) -> dict[str, str]:
    """Divide the families: the largest to training, the others in turn."""
    largest = max(members, key=lambda name: len(members[name]))
    others = [name for name in members if name != largest]
    places = {name: place % 10 for place, name in enumerate(others)}
    splits = {name: "val" if p in VAL else "test" if p in TEST else "train" for name, p in places.items()}
    return {largest: "train"} | splits


def render(typeface: Typeface) -> NDArray[np.uint8]:
    """Render a typeface: ``(10, RENDERINGS, 28, 28)`` grey levels 0..7."""
    levels = np.zeros((len(DIGITS), RENDERINGS, PACKAGE.SIDE, PACKAGE.SIDE), np.uint8)
    key = int(typeface.font.path.stem[:8], 16)  # of the font file's sum, so that other fonts do not matter
    for digit, ink in enumerate(typeface.inks):
        for number in range(RENDERINGS):
            rng = np.random.default_rng([key, digit, number])
            if number == 0:
                image = PACKAGE.normalise_ink(ink)
            else:
                shift = (int(rng.integers(-1, 2)), int(rng.integers(-1, 2)))
                image = PACKAGE.normalise_ink(restroke(bend(ink, rng), rng), int(rng.integers(22, 25)), shift)
            levels[digit, number] = np.rint(image / 255 * (PACKAGE.LEVELS - 1))
    return levels


def build(manifest: dict[str, Any], cache: Path, jobs: int) -> bytes:
    """Build the data set's bytes, laid out as those of the Glyphs: a family is what a writing system is there."""
    chosen = typefaces([fetch_font(entry, cache) for entry in manifest["font"]])
    members = families(chosen)
    splits = divide(members)
    order = [i for name in members for i in members[name]]
    with multiprocessing.Pool(jobs) as pool:
        levels = np.stack(list(pool.imap(render, [chosen[i] for i in order], chunksize=4)))
    used = np.repeat(np.arange(len(order), dtype=np.uint8), len(DIGITS) * RENDERINGS)
    head = {
        "renderings": RENDERINGS,
        "characters": DIGITS * len(order),
        "scripts": [
            {"name": name, "code": "Zyyy", "split": splits[name], "count": len(DIGITS) * len(of)}
            for name, of in members.items()
        ],
        "typefaces": [chosen[i].font.name for i in order],
    }
    return encode_glyphs(head, used, levels)


def digits_notice(manifest: dict[str, Any], names: Sequence[str]) -> str:
    """Write the notice: the fonts that were used, as that of the Glyphs names them."""
    used = {"font": [font for font in manifest["font"] if font["name"] in names]}
    text = notice(used).replace("the Glyphs data set", "the typeset digits", 1)
    text = text.replace("`glyphs.xz`", "`typeset_digits.xz`").replace("build_glyphs.py`", "build_typeset_digits.py`")
    return text.replace("single characters", "single digits")


def draw_sheet(blob: bytes) -> Image.Image:
    """Draw the contact sheet: a typeface a row, its digits across in two renderings, in three columns by split."""
    data = PACKAGE.decode_glyphs(blob)
    of_family = {name: split for split, names in data.splits.items() for name in names}
    rows = [of_family[script] for script in data.scripts[:: len(DIGITS)]]
    images = data.images.reshape(len(rows), len(DIGITS), *data.images.shape[1:])
    order = sorted(range(len(rows)), key=lambda i: list(data.splits).index(rows[i]))
    width, gap, down = len(DIGITS) * 2 * PACKAGE.SIDE, 20, -(-len(rows) // 3)
    sheet = np.zeros((down * PACKAGE.SIDE, 3 * width + 2 * gap), np.uint8)
    for at, row in enumerate(order):
        left, top = at // down * (width + gap), at % down * PACKAGE.SIDE
        tile = images[row][:, [0, 1 + row % (RENDERINGS - 1)]].reshape(-1, PACKAGE.SIDE, PACKAGE.SIDE)
        sheet[top : top + PACKAGE.SIDE, left : left + width] = tile.transpose(1, 0, 2).reshape(PACKAGE.SIDE, width)
    return Image.fromarray(255 - sheet)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the typeset digits from the fonts of the Glyphs' manifest.")
    parser.add_argument("--output", type=Path, default=DATA / "typeset_digits.xz", help="where the data set goes")
    parser.add_argument("--manifest", type=Path, default=Path(__file__).with_name("glyph_fonts.toml"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "metatransfer-glyphs")
    parser.add_argument("--jobs", type=int, default=2, help="processes that render; the bytes do not depend on it")
    parser.add_argument("--sheet", type=Path, help="also draw the contact sheet here")
    parser.add_argument("--notice", type=Path, help="also write the notice of the fonts here")
    parser.add_argument("--verify", action="store_true", help="rebuild, compare with --output and write nothing there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the build; the exit status is 1 where it fails or the comparison does."""
    options = parse(arguments)
    manifest = tomllib.loads(options.manifest.read_text(encoding="utf-8"))
    try:
        blob = build(manifest, options.cache, options.jobs)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    data = PACKAGE.decode_glyphs(blob)
    print(f"{len(data.typefaces)} typefaces of {sum(map(len, data.splits.values()))} families, {len(blob)} bytes, "
          f"SHA-256 {hashlib.sha256(blob).hexdigest()}: DIGITS_SHA256 of glyph_file.py must be that.")  # fmt: skip
    if options.verify:
        same = options.output.is_file() and options.output.read_bytes() == blob
        print(f"{options.output} is {'the same' if same else 'different'}.")
        return 0 if same else 1
    options.output.write_bytes(blob)
    if options.notice:
        options.notice.write_text(digits_notice(manifest, data.typefaces), encoding="utf-8")
    if options.sheet:
        draw_sheet(blob).save(options.sheet, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
