"""The features of a task that a recommendation is based on."""

from __future__ import annotations

import math

import numpy as np
import torch

from metatransfer.experiments.description import PRETRAINED, described
from metatransfer.functional import task_features
from metatransfer.nn import Conv4

LABELS = np.arange(24) % 3


def test_tables_have_no_landmarks_of_a_network():
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    found = described(x, LABELS, ways=2, shots=3, seed=1)
    assert list(found)[-len(PRETRAINED) :] == list(PRETRAINED)
    assert all(math.isnan(found[name]) for name in PRETRAINED)
    expected = task_features(x.numpy(), LABELS, ways=2, shots=3, seed=1)._asdict()
    assert {name: found[name] for name in expected} == expected


def test_images_have_those_of_the_features():
    x = torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x[torch.from_numpy(LABELS) == 0, :, 10:18] = 1
    with torch.no_grad():
        features = Conv4(weights="glyphs").eval()(x).numpy()
    seen, found = task_features(features, LABELS), described(x, LABELS)
    assert found["pretrained_nearest_mean"] == seen.nearest_mean
    assert found["pretrained_linear_probe"] == seen.linear_probe
    assert found["nearest_mean"] == task_features(x.flatten(1).numpy(), LABELS).nearest_mean
