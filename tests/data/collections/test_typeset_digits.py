"""The typeset digits that are shipped."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data.collections import Digits, TypesetDigits
from metatransfer.data.readers.glyph_file import DIGITS_PATH, DIGITS_SHA256, load_glyphs
from metatransfer.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def digits():
    return load_glyphs(DIGITS_PATH, DIGITS_SHA256)


@pytest.fixture(scope="module")
def data():
    return TypesetDigits().parts()


def samples(data, *splits):
    """All samples of some splits, flattened, and their labels."""
    chosen = [data[split] for split in splits]
    x = [one.read(torch.arange(len(one)), torch.device("cpu")).flatten(1) for one in chosen]
    return torch.cat(x), torch.from_numpy(np.concatenate([one.labels for one in chosen]))


def nearest_neighbour_accuracy(known, asked):
    nearest = torch.cdist(asked[0], known[0]).argmin(1)
    return float((known[1][nearest] == asked[1]).float().mean())


def test_every_typeface_has_every_digit_equally_often(data, digits):
    assert digits.images.shape == (960, 5, 28, 28)
    assert len(set(digits.typefaces)) == len(digits.typefaces) == 96
    assert "".join(digits.characters) == "0123456789" * 96
    assert (digits.typeface_of == np.repeat(np.arange(96), 10)[:, None]).all()
    assert {name: source.sizes.tolist() for name, source in data.items()} == {
        "train": [340] * 10,
        "val": [50] * 10,
        "test": [90] * 10,
    }


def test_no_typeface_and_no_family_is_in_two_splits(data, digits):
    listed = [family for families in digits.splits.values() for family in families]
    assert len(listed) == len(set(listed)) == 69
    # what is served: every image of a split is one of its typefaces
    of_image = {image.tobytes(): row // 10 for row in range(960) for image in digits.images[row]}
    assert len(of_image) == 4800  # no image twice, so that each tells its typeface
    found = {name: {of_image[image.numpy().tobytes()] for image in source.data[:, 0]} for name, source in data.items()}
    assert {name: len(typefaces) for name, typefaces in found.items()} == {"train": 68, "val": 10, "test": 18}
    assert len(set.union(*found.values())) == 96


def test_labels_are_those_of_the_images(data, digits):
    source = data["test"]
    rows = {image.tobytes(): row for row in range(960) for image in digits.images[row]}
    read = [digits.characters[rows[image.numpy().tobytes()]] for image in source.data[:, 0]]
    assert [source.class_names[label] for label in source.labels] == read


def test_their_order_tells_no_labels(data):
    labels = data["train"].labels
    same = (labels[1:] == labels[:-1]).mean()
    assert 0.07 < same < 0.13  # a tenth by chance; nearly all in the order of the file


def test_every_image_has_ink_and_paper(digits):
    flat = digits.images.reshape(-1, 28 * 28)
    assert (flat.max(1) == 255).all()
    ink = (flat >= 128).mean(1)
    assert ink.min() > 0.02
    assert ink.max() < 0.6
    assert not digits.images[:, 0, [0, -1]].any()  # the own drawing leaves a margin
    assert not digits.images[:, 0, :, [0, -1]].any()


def test_they_look_like_handwritten_digits_and_not_the_same(data):
    written = Digits().parts()
    assert data["train"].class_names == written["all"].class_names == tuple("0123456789")
    assert data["train"].sample_shape == written["all"].sample_shape == (1, 28, 28)
    train, everything = samples(data, "train"), samples(written, "all")
    assert nearest_neighbour_accuracy(train, samples(data, "test")) > 0.85
    assert 0.65 < nearest_neighbour_accuracy(train, everything) < 0.85


def test_their_size(data):
    small = TypesetDigits(image_size=14)
    assert small.opened()["val"].sample_shape == (1, 14, 14)
    assert small.protocol()["image_size"] == 14
    large = [Image.fromarray(image.numpy()) for image in data["val"].data[:, 0]]
    expected = {np.asarray(image.resize((14, 14), Image.Resampling.BILINEAR)).tobytes() for image in large}
    assert {image.numpy().tobytes() for image in small.opened()["val"].data[:, 0]} == expected


def test_the_file_is_small():
    assert DIGITS_PATH.stat().st_size <= 400_000


def test_arrays_are_shared_and_read_only(digits):
    assert load_glyphs(DIGITS_PATH, DIGITS_SHA256) is digits
    with pytest.raises(ValueError, match="read-only"):
        digits.images[0, 0, 0, 0] = 1


def test_a_changed_file_is_refused_in_one_sentence(tmp_path):
    copy = tmp_path / "copy.xz"
    shutil.copy(DIGITS_PATH, copy)
    blob = bytearray(copy.read_bytes())
    blob[len(blob) // 2] ^= 1
    copy.write_bytes(blob)
    with pytest.raises(UserError, match=f"should have SHA-256 {DIGITS_SHA256} but has") as caught:
        load_glyphs(copy, DIGITS_SHA256)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"none\.xz' belongs to metatransfer, but there is no such file: reinstall"):
        load_glyphs(tmp_path / "none.xz")


def test_an_impossible_size_is_refused():
    with pytest.raises(UserError, match="image_size must be a number above 0, but is 0"):
        TypesetDigits(image_size=0)


def test_notice_names_the_typefaces_as_the_manifest_does(digits):
    manifest = tomllib.loads((ROOT / "tools" / "glyph_fonts.toml").read_text(encoding="utf-8"))
    notice = DIGITS_PATH.with_name("NOTICE-typeset-digits.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in notice.splitlines() if line.startswith("| ")][2:]
    noticed = {(row[0].removeprefix("| "), row[1].split(" (")[0], row[2], row[3]) for row in rows}
    used = [font for font in manifest["font"] if font["name"] in digits.typefaces]
    assert noticed == {(font["name"], font["package"], font["version"], font["licence"]) for font in used}
    assert {name for name, *_ in noticed} == set(digits.typefaces)
