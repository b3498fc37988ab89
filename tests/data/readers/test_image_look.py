"""Any image becomes a sample of one shape."""

import numpy as np
import pytest
from image_trees import LOOK
from PIL import Image

from metatransfer.data.collections.glyphs import GlyphLook
from metatransfer.data.readers.image_files import open_tree
from metatransfer.data.readers.image_look import ImageLook, decode
from metatransfer.errors import UserError


def test_crop_takes_the_centre_and_resize_everything():
    pixels = np.zeros((6, 18, 3), np.uint8)
    pixels[:, 6:12] = 200
    image = Image.fromarray(pixels)
    assert (ImageLook(6)(image) == 200).all()
    squeezed = ImageLook(6, rule="resize")(image)
    assert squeezed[0, 3].tolist()[0] == 0
    assert squeezed[0, 3, 2] > 150
    assert (ImageLook(6, invert=True)(image) == 55).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_is_converted(mode, channels):
    grey = np.full((8, 8), 51, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    found = ImageLook(4, channels)(image)
    assert found.shape == (channels, 4, 4)
    assert found.dtype == np.uint8
    if mode != "1":
        assert abs(found.astype(int) - 51).max() <= 2


def test_transparent_is_paper():
    assert (ImageLook(4)(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == 255).all()


def test_photographs_stand_upright_and_large_jpegs_are_close(tmp_path):
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[:40] = 250
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = decode(open_tree(tmp_path, "toys").files()[0], LOOK)
    assert found[:, 0].max() < 10
    assert found[:, -1].min() > 240
    with Image.open(tmp_path / "a.jpg") as image:
        assert abs(found.astype(int) - LOOK(image)).max() <= 6


def read(folder, look=ImageLook(8, 1, "resize")):  # noqa: B008 - frozen
    [file] = open_tree(folder, "toys").files()
    return decode(file, look)


@pytest.mark.parametrize("top", [65535, 4095, 262, 200])
@pytest.mark.parametrize("form", ["png", "pgm", "tif", "big-endian", "unsigned 32", "signed 32"])
def test_deep_images_are_scaled_by_their_type(tmp_path, form, top):
    """A darker image stays darker: not every image by its own largest value."""
    pixels = np.full((8, 8), top, np.uint16)
    white = {"unsigned 32": 2**32 - 1, "signed 32": 2**31 - 1}.get(form, 65535)
    if white > 65535:
        pixels = (pixels / 65535 * white).astype(np.uint32 if form == "unsigned 32" else np.int32)
        header = b"II*\0\x08\0\0\0" + (10).to_bytes(2, "little")
        kind = 1 if form == "unsigned 32" else 2
        tags = {256: 8, 257: 8, 258: 32, 259: 1, 262: 1, 273: 134, 277: 1, 278: 8, 279: 256, 339: kind}
        entries = b"".join(
            tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in tags.items()
        )
        (tmp_path / "a.tif").write_bytes(header + entries + bytes(4) + pixels.tobytes())
    elif form == "big-endian":
        image = Image.frombytes("I;16B", (8, 8), pixels.astype(">u2").tobytes())
        assert (ImageLook(8, 1)(image) == round(255 * top / 65535)).all()
        return
    else:
        Image.fromarray(pixels).save(tmp_path / f"a.{form}")
    assert (read(tmp_path) == round(255 * top / 65535)).all()


def test_floating_point_images(tmp_path):
    pixels = np.full((8, 8), 0.6, np.float32)
    pixels[0, 0] = np.nan  # is black
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert np.unique(read(tmp_path)).tolist() == [0, 153]
    Image.fromarray(pixels * 200).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif': its values go from 0 to 120, but .* 0 \(black\) and 1 \(white\)"):
        read(tmp_path)


def test_a_postscript_file_is_not_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"  # Pillow would start Ghostscript for it
    with pytest.raises(UserError, match=r"a\.png' cannot be read as an image \(not an image\)"):
        read(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [90, 50])
def test_too_many_pixels(tmp_path, monkeypatch, limit):
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    assert read(tmp_path).shape == (1, 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "resize", None)  # is not reached
    with pytest.raises(
        UserError, match=r"10x10 pixels, more than the \d0 that|cannot be read as an image .*100 pixels"
    ):
        read(tmp_path)


@pytest.mark.parametrize("look", [ImageLook(28, 1), ImageLook(28, 1, "resize"), ImageLook(None, 1), GlyphLook()])
def test_every_look_is_upright(tmp_path, look):
    pixels = np.full((28, 28), 255, np.uint8)
    pixels[3:8, 3:25] = pixels[3:25, 3:7] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, options in (("a", pixels, {}), ("b", np.rot90(pixels), {"exif": exif})):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "1.png", **options)
    assert np.array_equal(read(tmp_path / "a", look), read(tmp_path / "b", look))


@pytest.mark.parametrize("ending", ["jfif", "JPE", "avif", "webp", "TIF", "jpeg"])
def test_endings_of_images(tmp_path, ending):
    form = {"jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF"}.get(ending.lower())
    Image.new("L", (9, 9), 200).save(tmp_path / f"a.{ending}", format=form)
    assert abs(int(read(tmp_path)[0, 4, 4]) - 200) < 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "image_size must be a number above 0"),
        ({"size": 10**6}, "at most 4096 pixels, but is 1000000"),
        ({"size": 4, "channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), but is 2"),
        ({"size": 4, "rule": "croop"}, "rule must be one of crop, resize, but is 'croop'. Did you mean crop"),
    ],
)
def test_impossible_looks(options, words):
    with pytest.raises(UserError, match=words):
        ImageLook(**options)
