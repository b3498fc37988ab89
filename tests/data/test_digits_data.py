"""Scikit-learn's digits as labelled images."""

import numpy as np
import pytest
import torch

from metatransfer.data.digits_data import DigitsDataModule
from metatransfer.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return DigitsDataModule(batch_size=64)


def test_they_are_divided_class_by_class(digits):
    assert digits.class_names == tuple("0123456789")
    assert {name: len(split) for name, split in digits.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    total = sum(split.counts for split in digits.splits.values())
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert abs(digits.split("test").counts - 0.2 * total).max() <= 0.5
    indices = np.concatenate([split.indices for split in digits.splits.values()])
    assert np.array_equal(np.sort(indices), np.arange(1797))


def test_they_look_like_glyphs(digits):
    digits.setup("fit")
    batch = next(iter(digits.train_dataloader()))
    assert batch.x.shape == (64, 1, 28, 28)
    assert batch.x.dtype == torch.float32
    assert batch.x.min() == 0  # paper
    assert batch.x.max() == 1  # ink
    shown = digits.show("test", 0)
    assert shown.shape == (1, 28, 28)
    shown[0, 2:26, 2:26] = 0
    assert shown.max() == 0  # a margin of two pixels


def test_their_size():
    raw = DigitsDataModule(image_size=8).show("train", 0)
    assert raw.shape == (1, 8, 8)
    torch.testing.assert_close(raw, (raw * 16).round() / 16, rtol=0, atol=0.002)  # all 17 levels are kept
    for size in (1, 9, 33):
        data = DigitsDataModule(image_size=size)
        assert data.sample_shape() == (1, size, size)
        assert data.protocol()["image_size"] == size


def test_few_labels():
    data = DigitsDataModule(labels_per_class=5)
    assert data.class_counts.tolist() == [5] * 10
    assert len(data.split("test")) == 359


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DigitsDataModule(image_size=0), "image_size must be a number above 0"),
        (lambda: DigitsDataModule(labels_per_class=200).setup("fit"), "labels_per_class=200 is more than class '8'"),
        (lambda: DigitsDataModule().setup("predict"), "DigitsDataModule has nothing to label"),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
