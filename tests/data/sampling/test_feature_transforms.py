"""Transforms of features against numpy in float64."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import Normalizer

from metatransfer import UserError
from metatransfer.data.sampling.augment import RowSum, Standardize, UnitLength

X = np.random.default_rng(0).gamma(2.0, size=(50, 7)) * 10.0 ** np.arange(-3, 4)


def test_row_sum():
    x = X.copy()
    x[3] = 0
    found = RowSum()(torch.from_numpy(x)).numpy()
    expected = x / np.where(x.sum(1, keepdims=True) == 0, 1, x.sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not found[3].any()
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(RowSum()(images).sum((1, 2, 3)), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["l2", "l1", "max"])
def test_unit_length_is_scikit_learns_normalizer(norm):
    x = X - X.mean(0)
    x[3] = 0
    found = UnitLength(norm)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), Normalizer(norm).transform(x), rtol=1e-12)
    assert not found[3].any()
    images = torch.rand(4, 3, 5, 5)
    torch.testing.assert_close(UnitLength()(images).flatten(1).norm(dim=1), torch.ones(4))
    assert repr(UnitLength(norm)) == f"UnitLength('{norm}')"
    with pytest.raises(UserError, match="norm must be one of l2, l1, max, but is 'l3'"):
        UnitLength("l3")


@pytest.mark.parametrize("size", [1, 7, 50, 100])
def test_standardize(size):
    x = torch.from_numpy(X)
    found = Standardize.of(x.split(size))
    np.testing.assert_allclose(found.mean.numpy(), X.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation.numpy(), X.std(0), rtol=1e-10)
    np.testing.assert_allclose(found(x).numpy(), (X - X.mean(0)) / X.std(0), rtol=1e-7, atol=1e-9)
    assert found.constant == 0
    assert found(x.float()).dtype == torch.float32


def test_images_by_channel():
    images = torch.rand(20, 3, 4, 4, dtype=torch.float64)
    found = Standardize.of(images.split(6))
    torch.testing.assert_close(found.mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(found(images).std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_a_constant_feature_becomes_zero():
    x = torch.from_numpy(X).float()
    x[:, 2] = 0.1  # no sum of floats: its mean differs from it in the last digit
    found = Standardize.of(x.split(9))
    assert found.constant == 1
    assert found.deviation[2] == 0
    assert not found(x)[:, 2].any()
    x[:, 2] = 5.0
    assert not found(x)[:, 2].any()
    assert found(x).isfinite().all()
