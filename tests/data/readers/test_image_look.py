"""Any image becomes a sample of one shape."""

import numpy as np
import pytest
from image_trees import LOOK
from PIL import Image

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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "image_size must be a number above 0"),
        ({"size": 4, "channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), but is 2"),
        ({"size": 4, "rule": "croop"}, "rule must be one of crop, resize, but is 'croop'. Did you mean crop"),
    ],
)
def test_impossible_looks(options, words):
    with pytest.raises(UserError, match=words):
        ImageLook(**options)
