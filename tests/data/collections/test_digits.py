"""Scikit-learn's digits as labelled images."""

import pytest
import torch

from metatransfer.data.collections import Digits
from metatransfer.errors import UserError


def images(size=28):
    source = Digits(size).parts()["all"]
    return source, source.read(torch.arange(len(source)), torch.device("cpu"))


def test_they_look_like_glyphs():
    source, x = images()
    assert source.class_names == tuple("0123456789")
    assert source.sizes.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert x.shape == (1797, 1, 28, 28)
    assert (x.min(), x.max()) == (0, 1)  # paper and ink
    x[..., 2:26, 2:26] = 0
    assert x.max() == 0  # a margin of two pixels


def test_their_size():
    _, raw = images(8)
    torch.testing.assert_close(raw, (raw * 16).round() / 16, rtol=0, atol=0.002)  # all 17 levels are kept
    for size in (1, 9, 33):
        assert images(size)[1].shape == (1797, 1, size, size)
    assert Digits(9).protocol()["image_size"] == 9
    with pytest.raises(UserError, match="image_size must be a number above 0"):
        Digits(0)
