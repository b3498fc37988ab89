"""Small images in memory, and the base classes of collections of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data.collections.image_collection import by_content, gathered, labelled_pixels
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

AS_IT_IS = ImageLook(None, None)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 5, 3), dtype=np.uint8)


def test_as_the_image_has():
    assert np.array_equal(AS_IT_IS(GREY), GREY[None])
    assert np.array_equal(AS_IT_IS(COLOUR), COLOUR.transpose(2, 0, 1))
    palette = Image.fromarray(COLOUR).quantize(4)
    assert np.array_equal(AS_IT_IS(palette).transpose(1, 2, 0), np.asarray(palette.convert("RGB")))


def test_channels():
    assert np.array_equal(ImageLook(None, 3)(GREY), np.stack([GREY] * 3))
    luminance = COLOUR @ np.array([0.299, 0.587, 0.114])
    found = ImageLook(None, 1)(COLOUR)
    assert found.shape == (1, 5, 5)
    assert np.abs(found[0] - luminance).max() <= 1


def test_size():
    found = ImageLook(10, None)(COLOUR)
    expected = np.asarray(Image.fromarray(COLOUR).resize((10, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(found.transpose(1, 2, 0), expected)
    assert np.array_equal(ImageLook(5, None)(COLOUR), AS_IT_IS(COLOUR))
    # the centre of what is no square
    assert np.array_equal(ImageLook(4, None)(GREY), GREY[None, 1:5])


def test_samples_are_gathered():
    samples = [AS_IT_IS(COLOUR), AS_IT_IS(255 - COLOUR)]
    found = gathered(iter(samples), 2, "them")
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack(samples))


def test_classes_without_images_are_left_out():
    source = labelled_pixels(np.zeros((3, 1, 2, 2), np.uint8), np.array([4, 1, 4]), "abcdef", "them")
    assert source.class_names == ("b", "e")
    assert source.labels.tolist() == [1, 0, 1]


def test_order_by_content():
    data = torch.from_numpy(RNG.integers(0, 256, (50, 1, 3, 3), dtype=np.uint8))
    labels = np.arange(50) // 10
    found = by_content(TensorSource(data, labels, "abcde", "them"))
    turned = by_content(TensorSource(data.flip(0), labels[::-1].copy(), "abcde", "them"))
    assert torch.equal(found.data, turned.data)
    assert np.array_equal(found.labels, turned.labels)
    assert not (np.diff(found.labels) >= 0).all()
    assert sorted(zip(found.data.flatten(1).tolist(), found.labels, strict=True)) == sorted(
        zip(data.flatten(1).tolist(), labels, strict=True)
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: gathered(iter(()), 0, "them"), "them has no images"),
        (
            lambda: gathered((AS_IT_IS(one) for one in (COLOUR, GREY)), 2, "them"),
            "them: image 1 is 4x6 pixels in 1 channel, but the first is 5x5 pixels in 3 channels: set image_size",
        ),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
