import shutil
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from metatransfer.data.readers import glyph_file as module
from metatransfer.data.readers.glyph_file import GLYPHS_PATH, GLYPHS_SHA256, glyph_from_image, load_glyphs
from metatransfer.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data():
    return load_glyphs()


def one_shot_accuracy(data, split, episodes=300):
    """Pixel 1-nearest-neighbour, 5-way 1-shot with 15 queries a class, classes from the whole split."""
    rng = np.random.default_rng(0)
    pool = [i for i, name in enumerate(data.scripts) if name in data.splits[split]]
    right = []
    for _ in range(episodes):
        classes = rng.choice(pool, 5, replace=False)
        picked = np.stack([data.images[c][rng.permutation(data.images.shape[1])[:16]] for c in classes])
        flat = picked.reshape(5, 16, -1).astype(np.float32)
        query, support = flat[:, 1:].reshape(75, 1, -1), flat[None, :, 0]
        nearest = ((query - support) ** 2).sum(-1).argmin(1)
        right.append((nearest == np.repeat(np.arange(5), 15)).mean())
    return float(np.mean(right))


def test_counts_and_shapes(data):
    count, renderings = data.images.shape[:2]
    assert count >= 1200
    assert renderings >= 20
    assert data.images.shape[2:] == (28, 28)
    assert data.images.dtype == np.uint8
    assert len(data.characters) == len(data.scripts) == count
    assert data.typeface_of.shape == (count, renderings)
    assert data.typeface_of.max() < len(data.typefaces)
    per_script = Counter(data.scripts)
    assert len(per_script) >= 40
    assert min(per_script.values()) >= 10
    assert min(per_script[name] for split in ("val", "test") for name in data.splits[split]) >= 20


def test_splits_share_no_script_and_cover_all(data):
    listed = [name for names in data.splits.values() for name in names]
    assert set(data.splits) == {"train", "val", "test"}
    assert len(listed) == len(set(listed))
    assert set(listed) == set(data.scripts) == set(data.codes)
    assert len(data.splits["val"]) >= 6
    assert len(data.splits["test"]) >= 10


def test_no_character_twice(data):
    assert all(len(character) == 1 for character in data.characters)
    assert len(set(data.characters)) == len(data.characters)


def test_every_image_has_ink_and_paper(data):
    flat = data.images.reshape(-1, 28 * 28)
    ink = (flat >= 128).mean(1)
    assert flat.max(1).min() == 255
    assert ink.min() > 0.01
    assert ink.max() < 0.7
    assert (flat == 0).mean(1).min() > 0.2


def test_renderings_of_a_character_differ(data):
    same = (data.images[:, :1] == data.images[:, 1:]).all((2, 3))
    assert not same.any()


def test_arrays_are_shared_and_read_only(data):
    assert load_glyphs() is data
    with pytest.raises(ValueError, match="read-only"):
        data.images[0, 0, 0, 0] = 1


def test_a_changed_file_is_refused_in_one_sentence(tmp_path):
    copy = tmp_path / "glyphs.xz"
    shutil.copy(GLYPHS_PATH, copy)
    blob = bytearray(copy.read_bytes())
    blob[len(blob) // 2] ^= 1
    copy.write_bytes(blob)
    with pytest.raises(UserError) as caught:
        load_glyphs(copy)
    message = str(caught.value)
    assert str(copy) in message
    assert GLYPHS_SHA256 in message
    assert "reinstall" in message
    assert "\n" not in message


def test_a_missing_file_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError) as caught:
        load_glyphs(tmp_path / "none.xz")
    message = str(caught.value)
    assert "none.xz" in message
    assert "reinstall" in message
    assert "\n" not in message


def test_the_file_is_small():
    assert GLYPHS_PATH.stat().st_size <= 5_000_000


def test_pixel_nearest_neighbour_is_neither_lost_nor_done(data):
    assert 0.35 <= one_shot_accuracy(data, "test") <= 0.75


def picture(mode="L", scale=1, at=(20, 14), size=(80, 60), paper=255, ink=0):
    """A letter-like figure without symmetry: a stem, a long bar at the top and a short one below."""
    image = Image.new(mode, (size[0] * scale, size[1] * scale), paper)
    pen, (x, y) = ImageDraw.Draw(image), at
    for left, top, right, bottom in ((0, 0, 6, 32), (6, 0, 24, 5), (6, 15, 18, 20)):
        box = [(x + left) * scale, (y + top) * scale, (x + right) * scale - 1, (y + bottom) * scale - 1]
        pen.rectangle(box, fill=ink)
    return image


def test_glyph_from_image_crops_scales_and_centres():
    glyph = glyph_from_image(picture())
    rows, columns = np.flatnonzero(glyph.any(1)), np.flatnonzero(glyph.any(0))
    assert glyph.shape == (28, 28)
    assert glyph.dtype == np.uint8
    assert glyph.max() == 255
    assert rows[-1] - rows[0] + 1 == module.BOX
    assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 1
    assert glyph[4, 8:20].mean() > glyph[22, 12:20].mean() + 200  # the long bar is at the top, not mirrored


@pytest.mark.parametrize(
    "other",
    [
        picture(paper=0, ink=255),
        picture(paper=200, ink=90),
        picture(at=(2, 1)),
        picture(size=(300, 50)),
        picture("1", paper=1, ink=0),
        picture("RGB", paper=(255, 255, 255), ink=(0, 0, 0)),
        picture("RGBA", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        picture("RGBA", paper=(0, 0, 0, 0), ink=(255, 255, 255, 255)),
        picture("LA", paper=(0, 0), ink=(0, 255)),
        picture("RGB", paper=(255, 255, 255), ink=(0, 0, 0)).quantize(4),
        picture("I;16", paper=65535, ink=0),
        picture("I", paper=0, ink=70000),
        picture("F", paper=1.0, ink=0.0),
    ],
    ids=["light", "faint", "moved", "wide", "1", "RGB", "RGBA", "RGBA-light", "LA", "P", "I;16", "I", "F"],
)
def test_glyph_from_image_does_not_mind_polarity_place_or_mode(other):
    assert np.array_equal(glyph_from_image(other), glyph_from_image(picture()))


@pytest.mark.parametrize("scale", [2, 3, 5])
def test_glyph_from_image_does_not_mind_size(scale):
    small, large = (glyph_from_image(picture(scale=s)).astype(float) for s in (1, scale))
    assert np.abs(small - large).mean() < 4


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_glyph_from_image_refuses_a_blank_picture(grey):
    with pytest.raises(UserError, match="40x30 pixels is blank"):
        glyph_from_image(Image.new("L", (40, 30), grey))


def test_glyph_from_image_gives_back_a_glyph_of_the_data_set(data):
    for image in data.images[::97, 0]:
        again = glyph_from_image(Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC))
        best = max(
            np.corrcoef(np.roll(again, (dy, dx), (0, 1)).ravel(), image.ravel())[0, 1]
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        )
        assert best > 0.8


def test_notice_and_manifest_name_the_same_fonts(data):
    manifest = tomllib.loads((ROOT / "tools" / "glyph_fonts.toml").read_text(encoding="utf-8"))
    notice = GLYPHS_PATH.with_name("NOTICE-glyphs.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in notice.splitlines() if line.startswith("| ")][2:]
    noticed = {(row[0].removeprefix("| "), row[1].split(" (")[0], row[2], row[3]) for row in rows}
    listed = {(font["name"], font["package"], font["version"], font["licence"]) for font in manifest["font"]}
    assert noticed == listed
    assert [font["name"] for font in manifest["font"]] == list(data.typefaces)
    assert {script["name"]: script["split"] for script in manifest["script"]} == {
        name: split for split, names in data.splits.items() for name in names
    }
