"""Small images in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data.readers.pixels import PixelLook, by_content, gathered, labelled_pixels
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 5, 3), dtype=np.uint8)


def test_as_the_image_has():
    assert torch.equal(PixelLook()(GREY), torch.from_numpy(GREY)[None])
    assert torch.equal(PixelLook()(COLOUR), torch.from_numpy(COLOUR).permute(2, 0, 1))
    palette = Image.fromarray(COLOUR).quantize(4)
    assert np.array_equal(PixelLook()(palette).permute(1, 2, 0).numpy(), np.asarray(palette.convert("RGB")))


def test_channels():
    assert torch.equal(PixelLook(channels=3)(GREY), torch.from_numpy(GREY).expand(3, 6, 4))
    luminance = COLOUR @ np.array([0.299, 0.587, 0.114])
    found = PixelLook(channels=1)(COLOUR)
    assert found.shape == (1, 5, 5)
    assert np.abs(found[0].numpy() - luminance).max() <= 1


def test_size():
    found = PixelLook(size=10)(COLOUR)
    expected = np.asarray(Image.fromarray(COLOUR).resize((10, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert torch.equal(PixelLook(size=5)(COLOUR), PixelLook()(COLOUR))
    # the centre of what is no square
    assert torch.equal(PixelLook(size=4)(GREY), torch.from_numpy(GREY[1:5])[None])


def test_samples_are_gathered():
    samples = [PixelLook()(COLOUR), PixelLook()(255 - COLOUR)]
    found = gathered(iter(samples), 2, "them")
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.stack(samples))


def test_classes_without_images_are_left_out():
    source = labelled_pixels(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), np.array([4, 1, 4]), "abcdef", "them")
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
        (lambda: PixelLook(size=0), "image_size must be a number above 0"),
        (lambda: PixelLook(channels=2), r"channels must be 1 \(grey\), 3 \(RGB\) or left out, but is 2"),
        (lambda: gathered(iter(()), 0, "them"), "them has no images"),
        (
            lambda: gathered((PixelLook()(one) for one in (COLOUR, GREY)), 2, "them"),
            "them: image 1 is 4x6 pixels in 1 channel, but the first is 5x5 pixels in 3 channels: set image_size",
        ),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
