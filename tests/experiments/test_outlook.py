"""What is said of a transfer before training, in cases whose answer is known."""

from __future__ import annotations

import pytest
import torch

from metatransfer import UserError
from metatransfer.adapters import Labelled
from metatransfer.experiments.outlook import outlook
from metatransfer.functional import h_score
from metatransfer.functional.domain.distance import proxy_a_distance
from metatransfer.nn import RawFeatures

NAMES = ("a", "b", "c")


def samples(shift=0.0, apart=3.0, seed=0, n=150):
    """Three classes on a line, ``apart`` from each other; all of them moved by ``shift``."""
    make = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=make)
    x[:, 0] += apart * y
    x[:, 1] += shift
    return Labelled(x, y)


def told(target_classes=NAMES, shift=0.0, apart=3.0):
    return outlook(samples(apart=apart), samples(shift, apart, seed=1).x, NAMES, target_classes)


def test_the_numbers_are_those_of_their_functions():
    source, target = samples(), samples(2.0, seed=1)
    found = outlook(source, target.x, NAMES, NAMES, RawFeatures((4,)))
    assert found.a_distance == proxy_a_distance(source.x, target.x)
    assert found.separation == pytest.approx(float(h_score(source.x, source.y, shrinkage=True)) / 2, rel=1e-12)
    # neither the order of the labels' numbers nor labels without samples change anything
    other = outlook(Labelled(source.x, 5 - 2 * source.y), target.x, NAMES, NAMES)
    assert other.separation == pytest.approx(found.separation, rel=1e-12)


def test_domains_that_are_alike_have_little_to_adapt():
    found = told()
    assert found.a_distance < 0.5
    assert "look alike" in str(found)
    assert "expect little gain" in str(found)


def test_far_domains_with_the_same_classes_are_left_open():
    found = told(shift=10.0)
    assert found.a_distance > 1.9
    assert "far apart" in str(found)
    assert "may help or hurt" in str(found)


@pytest.mark.parametrize(
    ("classes", "words", "advice"),
    [
        (("a",), "has 1 of the 3 classes of the source,", "need the same classes"),
        ((*NAMES, "d"), "has 3 of the 3 classes of the source and 1 other,", "need the same classes"),
        (("d", "e"), "has 0 of the 3 classes of the source and 2 others,", "rename the classes"),
        ((), "classes of the target are unknown", "expect little gain"),
    ],
)
def test_overlap_of_the_labels(classes, words, advice):
    sentence = str(told(classes))
    assert words in sentence
    assert advice in sentence


def test_features_without_classes_are_told():
    well = told(apart=20.0)
    assert f"separate the classes of the source well (H-score {100 * well.separation:.0f} % of its maximum)" in str(
        well
    )
    assert "separate the classes of the source badly" in str(told(apart=0.0))


def test_images_are_seen_by_the_network_of_the_package():
    x = torch.rand(40, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    found = outlook(Labelled(x, torch.arange(40) % 2), torch.zeros(20, 1, 28, 28), ("a", "b"))
    assert found.a_distance == 2.0


def test_mistakes():
    with pytest.raises(UserError, match="the source must be of at least 2 classes"):
        outlook(Labelled(samples().x, torch.zeros(150, dtype=torch.int64)), samples().x, NAMES)
    with pytest.raises(UserError, match="the target must have at least 5 samples to be compared, but has 3"):
        outlook(samples(), samples().x[:3], NAMES)
    with pytest.raises(UserError, match="'the target' has samples of shape"):
        outlook(samples(), torch.rand(9, 5), NAMES)
