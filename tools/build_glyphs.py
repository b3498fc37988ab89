"""Build the Glyphs data set from openly licensed fonts: the same manifest gives the same bytes.

The fonts come from package registries through their own clients (npm, apt-get, pip), into a cache folder, and are
checked against the SHA-256 sums of ``glyph_fonts.toml``. Install ``requirements-glyphs.txt`` first: the bytes depend
on those versions.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import lzma
import multiprocessing
import subprocess
import sys
import tarfile
import tomllib
import types
import unicodedata
import zipfile
from collections.abc import Sequence
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fontTools import unicodedata as script_data
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "metatransfer" / "data"
RENDERINGS = 20
EM = 112  # the longer side of a glyph's ink box before it is varied
CANVAS = 176  # leaves room for a turned and bent glyph
ALIKE = 0.95  # two characters of a script whose blurred images have a higher cosine look the same
ALIKE_ELSEWHERE = 0.93  # the same for characters of two scripts, where nothing is lost by leaving one out
# Spread of the variation, set so that the nearest neighbour on pixels is right in about half of 5-way 1-shot queries.
TURN, SHEAR, STRETCH, ELASTIC = 9.0, 0.16, 0.22, 4.8  # degrees, tangent, log of the ratio, pixels of CANVAS
CANDIDATES = 150  # characters of a script looked at before near duplicates go


class BuildError(Exception):
    """Something outside this script stops the build; the message is one sentence."""


class Font(NamedTuple):
    """One typeface of the manifest and where its file lies in the cache."""

    name: str
    path: Path
    scripts: tuple[str, ...]


class Glyph(NamedTuple):
    """One character to render and the typefaces (indices, paths) that carry it."""

    character: str
    typefaces: tuple[tuple[int, Path], ...]


def load_package_module() -> types.ModuleType:
    """Load the package's reader of the glyphs from its file: neither torch nor an installed package is needed."""
    files = {"metatransfer.errors": DATA.parent / "errors.py", "glyphs_of_package": DATA / "readers" / "glyph_file.py"}
    for name, path in files.items():
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise BuildError(f"The build needs {path}, which cannot be read; run it from a complete checkout.")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault("metatransfer", types.ModuleType("metatransfer"))
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


PACKAGE = load_package_module()


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch_package(kind: str, package: str, version: str, cache: Path) -> Path:
    """Give the folder with the package's file, fetched with the registry's client unless it is there already."""
    folder = cache / f"{kind}-{package.replace('/', '+')}-{version.replace(':', '+')}"
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = {
        "npm": ["npm", "pack", "--silent", f"{package}@{version}"],
        "apt": ["apt-get", "-q", "download", f"{package}={version}"],
        "pypi": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{package}=={version}"],
    }[kind]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"The font package {package} {version} needs {command[0]}, which is not installed.") from None
    if done.returncode != 0 or not any(folder.iterdir()):
        raise BuildError(f"The {kind} package {package} {version} of the font manifest cannot be fetched.")
    return folder


def read_member(archive: Path, member: str) -> bytes | None:
    """Read one file out of a tgz, a wheel or a Debian package."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(fileobj=BytesIO(tar_bytes(archive))) as tar:
            found = tar.extractfile(("./" if archive.suffix == ".deb" else "") + member)
            return found.read() if found else None
    except KeyError:
        return None


@lru_cache(maxsize=2)
def tar_bytes(archive: Path) -> bytes:
    """Give the archive itself, or for a Debian package (an ``ar`` file) the data archive in it."""
    raw = archive.read_bytes()
    if archive.suffix != ".deb":
        return raw
    at = 8  # after the magic "!<arch>\n" come 60-byte headers, each followed by its file, padded to even length
    while at < len(raw):
        size = int(raw[at + 48 : at + 58])
        if raw[at : at + 8] == b"data.tar":
            body = raw[at + 60 : at + 60 + size]
            return lzma.decompress(body) if raw[at : at + 11] == b"data.tar.xz" else body
        at += 60 + size + size % 2
    raise BuildError(f"The Debian package {archive.name} holds no data archive.")


def fetch_font(entry: dict[str, Any], cache: Path) -> Font:
    """Extract one font of the manifest into the cache and check its sum."""
    target = cache / "fonts" / (entry["sha256"] + Path(entry["file"]).suffix)
    if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != entry["sha256"]:
        folder = fetch_package(entry["kind"], entry["package"], entry["version"], cache)
        body = read_member(sorted(folder.iterdir())[0], entry["file"])
        found = "no such file" if body is None else hashlib.sha256(body).hexdigest()
        if body is None or found != entry["sha256"]:
            raise BuildError(
                f"The font {entry['file']} of the {entry['kind']} package {entry['package']} {entry['version']} "
                f"should have SHA-256 {entry['sha256']} but there is {found}."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    return Font(entry["name"], target, tuple(entry["scripts"]))


# --- choosing characters ----------------------------------------------------------------------------------------------


@cache
def coverage(path: Path) -> frozenset[int]:
    """Give the code points that a font maps to a glyph."""
    return frozenset(TTFont(path, fontNumber=0, lazy=True).getBestCmap())


@cache
def at_size(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a font; basic layout, for the glyph alone counts and no shaping library may differ."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def ink_box(font: ImageFont.FreeTypeFont, character: str) -> tuple[int, int, int, int]:
    """Give the pixel box of a character: left, top, right, bottom."""
    left, top, right, bottom = font.getbbox(character)
    return int(left), int(top), int(right), int(bottom)


@lru_cache(maxsize=64)
def draw_large(path: Path, character: str) -> NDArray[np.uint8] | None:
    """Draw a character in the middle of a ``CANVAS x CANVAS`` image, its longer side ``EM``; None where it is blank."""
    probe = at_size(path, 64)
    missing = probe.getmask(chr(0x10FFFE))
    mask = probe.getmask(character)
    if mask.getbbox() is None or (mask.size == missing.size and bytes(mask) == bytes(missing)):
        return None
    left, top, right, bottom = ink_box(probe, character)
    font = at_size(path, min(1000, max(8, round(64 * EM / max(right - left, bottom - top, 1)))))
    left, top, right, bottom = ink_box(font, character)
    image = Image.new("L", (CANVAS, CANVAS))
    corner = ((CANVAS - right - left) // 2, (CANVAS - bottom - top) // 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    ink = np.asarray(image)
    return ink if (ink > 127).sum() > 40 else None


def is_letter(code: int, script: str) -> bool:
    """Tell whether a code point is an undecomposable letter of a script."""
    character = chr(code)
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nl")
        and script_data.script(character) == script
        and unicodedata.normalize("NFD", character) == character
    )


def candidates(entry: dict[str, Any], reference: Font) -> list[str]:
    """List the characters of a script that its first typeface carries, at most `CANDIDATES`, evenly spread."""
    if "characters" in entry:
        return [c for c in entry["characters"] if ord(c) in coverage(reference.path)]
    codes = [c for c in sorted(coverage(reference.path)) if is_letter(c, entry["code"])]
    if "ranges" in entry:
        codes = [c for c in codes if any(low <= c <= high for low, high in entry["ranges"])]
    return [chr(c) for c in spread(codes, CANDIDATES)]


def spread(items: list[Any], limit: int) -> list[Any]:
    """Take at most `limit` items at even distances."""
    return items if len(items) <= limit else [items[i * len(items) // limit] for i in range(limit)]


def appearance(ink: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Give the blurred, size-normalised image as a unit vector."""
    small = ndimage.gaussian_filter(PACKAGE.normalise_ink(ink, 24).astype(np.float64), 0.8).ravel()
    return np.asarray(small / np.linalg.norm(small))


def choose(entry: dict[str, Any], fonts: list[Font], kept: list[NDArray[np.float64]]) -> list[Glyph]:
    """Choose a script's characters: none that looks like another one of it or of an earlier script."""
    mine = [(i, f) for i, f in enumerate(fonts) if entry["name"] in f.scripts]
    chosen: list[tuple[str, NDArray[np.float64]]] = []
    for character in candidates(entry, mine[0][1]):
        ink = draw_large(mine[0][1].path, character)
        if ink is None:
            continue
        look = appearance(ink)
        if all(look @ other < ALIKE_ELSEWHERE for other in kept) and all(look @ other < ALIKE for _, other in chosen):
            chosen.append((character, look))
    chosen = spread(chosen, entry["limit"])
    kept.extend(look for _, look in chosen)
    return [Glyph(c, tuple((i, f.path) for i, f in mine if ord(c) in coverage(f.path))) for c, _ in chosen]


# --- rendering --------------------------------------------------------------------------------------------------------


def bend(ink: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Turn, shear, stretch and bend a large glyph by random amounts."""
    angle = np.deg2rad(np.clip(rng.normal(0, TURN), -2 * TURN, 2 * TURN))
    shear, stretch = np.clip(rng.normal(0, (SHEAR, STRETCH)), -0.35, 0.35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, 0], [shear, 1]]) @ np.diag([np.exp(stretch / 2), np.exp(-stretch / 2)])
    side = (np.arange(CANVAS) - (CANVAS - 1) / 2).astype(np.float32)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"))
    warped = np.tensordot(matrix.astype(np.float32), grid, 1)
    for axis in range(2):
        coarse = Image.fromarray(rng.normal(0, ELASTIC, (5, 5)).astype(np.float32))
        warped[axis] += np.asarray(coarse.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))
    at = warped + (CANVAS - 1) / 2
    return np.asarray(ndimage.map_coordinates(ink.astype(np.float32) / 255, at, order=1, mode="constant"))


def restroke(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make strokes heavier or lighter: blur, then cut at a random level, though never one that loses hairlines."""
    blurred = ndimage.gaussian_filter(ink, float(rng.uniform(1.6, 3.2)))
    hairline = float(np.quantile(blurred[ink > 0.5], 0.1))
    level = min(float(rng.uniform(0.2, 0.6)), 0.8 * hairline)
    return np.asarray(np.rint(255 * np.clip((blurred - level) * 8 + 0.5, 0, 1)), dtype=np.uint8)


def render(glyph: Glyph) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a character: ``(R, 28, 28)`` grey levels 0..7 and the ``(R,)`` typefaces they are drawn from."""
    usable = [(i, ink) for i, p in glyph.typefaces if (ink := draw_large(p, glyph.character)) is not None]
    levels = np.zeros((RENDERINGS, PACKAGE.SIDE, PACKAGE.SIDE), np.uint8)
    used = np.zeros(RENDERINGS, np.uint8)
    for number in range(RENDERINGS):
        rng = np.random.default_rng([ord(glyph.character), number])
        used[number], ink = usable[number % len(usable)]
        shift = (int(rng.integers(-1, 2)), int(rng.integers(-1, 2)))
        large = restroke(bend(ink, rng), rng)
        image = PACKAGE.normalise_ink(large, int(rng.integers(22, 25)), shift)
        levels[number] = np.rint(image / 255 * (PACKAGE.LEVELS - 1))
    return levels, used


# --- packing ----------------------------------------------------------------------------------------------------------


def encode_glyphs(head: dict[str, Any], used: NDArray[np.uint8], levels: NDArray[np.uint8]) -> bytes:
    """Write what `decode_glyphs` of the package reads; an xz stream carries no time stamp."""
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    raw = len(text).to_bytes(4, "little") + text + used.tobytes() + (levels << 5).tobytes()
    packing = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}
    return lzma.compress(raw, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[packing])


def build(manifest: dict[str, Any], cache: Path, jobs: int) -> bytes:
    """Build the data set's bytes from the manifest."""
    fonts = [fetch_font(entry, cache) for entry in manifest["font"]]
    kept: list[NDArray[np.float64]] = []
    chosen = [choose(entry, fonts, kept) for entry in manifest["script"]]
    glyphs = [glyph for script in chosen for glyph in script]
    with multiprocessing.Pool(jobs) as pool:
        drawn = list(pool.imap(render, glyphs, chunksize=16))
    head = {
        "renderings": RENDERINGS,
        "characters": "".join(g.character for g in glyphs),
        "scripts": [
            {"name": e["name"], "code": e["code"], "split": e["split"], "count": len(c)}
            for e, c in zip(manifest["script"], chosen, strict=True)
        ],
        "typefaces": [font.name for font in fonts],
    }
    return encode_glyphs(head, np.stack([d[1] for d in drawn]), np.stack([d[0] for d in drawn]))


# --- notice and contact sheet -----------------------------------------------------------------------------------------


def notice(manifest: dict[str, Any]) -> str:
    """Write the notice: every font with its package, copyright line and licence."""
    rows = sorted(manifest["font"], key=lambda f: str(f["name"]).lower())
    lines = [
        "# Fonts behind the Glyphs data set",
        "",
        "`glyphs.xz` holds small pictures of single characters, drawn and varied by `tools/build_glyphs.py`, from the",
        "typefaces below. It holds no font and no outline. The typefaces are their authors' work, under the licences",
        "named here; the sums of the font files are in `tools/glyph_fonts.toml`. Training, validation and test have",
        "different writing systems, but about five shapes have a look-alike in another split.",
        "",
        "| typeface | package | version | licence | copyright |",
        "| --- | --- | --- | --- | --- |",
    ]
    for f in rows:
        cells = (f["name"], f"{f['package']} ({f['kind']})", f["version"], f["licence"], f["copyright"])
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def draw_sheet(blob: bytes, label_font: Path) -> Image.Image:
    """Draw the contact sheet: a block a script, 8 characters across and 3 renderings down, in 5 columns."""
    data = PACKAGE.decode_glyphs(blob)
    across, cell, gap, label, margin = 5, 28, 26, 22, 28
    width, height = 8 * cell, 3 * cell + label
    title_font, name_font = at_size(label_font, 22), at_size(label_font, 14)
    rows = sum(-(-len(names) // across) for names in data.splits.values())
    size = (2 * margin + across * width + (across - 1) * gap, margin + rows * (height + gap) + 3 * 46)
    sheet = Image.new("L", size, 255)
    pen, top = ImageDraw.Draw(sheet), margin
    for split, names in data.splits.items():
        count = sum(data.scripts.count(name) for name in names)
        pen.text((margin, top), f"{split}: {len(names)} writing systems, {count} characters", fill=0, font=title_font)
        pen.line((margin, top + 32, size[0] - margin, top + 32), fill=170)
        top += 46
        for at, name in enumerate(names):
            picked = spread([i for i, script in enumerate(data.scripts) if script == name], 8)
            left = margin + at % across * (width + gap)
            pen.text((left, top), name, fill=70, font=name_font)
            tile = data.images[picked][:, [0, 7, 13]].transpose(1, 2, 0, 3).reshape(3 * cell, -1)
            sheet.paste(Image.fromarray(255 - tile), (left, top + label))
            if at % across == across - 1 or at == len(names) - 1:
                top += height + gap
    return sheet.quantize(16)


# --- command line -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the Glyphs data set from the fonts of the manifest.")
    parser.add_argument("--output", type=Path, default=DATA / "glyphs.xz", help="where the data set goes")
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
    found = hashlib.sha256(blob).hexdigest()
    print(f"{len(blob)} bytes, SHA-256 {found}")
    if options.verify:
        same = options.output.is_file() and options.output.read_bytes() == blob
        print(f"{options.output} is {'the same' if same else 'different'}.")
        return 0 if same else 1
    options.output.write_bytes(blob)
    if found != PACKAGE.GLYPHS_SHA256:
        print(f'Now set GLYPHS_SHA256 = "{found}" in {DATA / "readers" / "glyph_file.py"}.')
    if options.notice:
        options.notice.write_text(notice(manifest), encoding="utf-8")
    if options.sheet:
        label = fetch_font(next(f for f in manifest["font"] if f["name"] == "Noto Sans Regular"), options.cache)
        draw_sheet(blob, label.path).save(options.sheet, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
