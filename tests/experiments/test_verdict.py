"""Intervals over seeds, and what they say in words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from metatransfer.experiments.intervals import Interval, verdict
from metatransfer.methods.twins import ADAPTATION, TRANSFER


def test_the_interval_is_students():
    values = [0.61, 0.64, 0.55, 0.7]
    found = Interval.of(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.ci95 == pytest.approx((high - low) / 2)
    assert str(found) == f"62.50 ± {100 * found.ci95:.2f}"
    # two seeds by hand: t(0.975, 1) = 12.7062
    assert Interval.of([0.2, 0.4]).ci95 == pytest.approx(12.706204736 * 0.1)
    assert Interval.of([0.5]).ci95 is None
    assert str(Interval.of([0.5])) == "50.00"
    assert Interval.of([0.5, 0.5]).ci95 == 0


def test_a_gain_is_paired_by_seed():
    found = Interval.of_gain([0.9, 0.5], [0.8, 0.4])
    assert found.values == pytest.approx([0.1, 0.1]), "what is gained is positive"
    assert found.ci95 == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Interval.of_gain([0.9, 0.5], [0.8])


def test_accuracies_over_seeds_stay_below_100_percent():
    found = Interval.of([1.0, 0.9, 0.98])
    assert found.low < found.mean < found.high == 1
    assert str(found) == f"96.0 [{100 * found.low:.1f}, 100.0]"
    assert Interval.of([0.0, 0.1]).low == 0
    assert Interval.of_gain([0.1, 0.3], [0.2, 0.35]).low < 0


def test_seeds_that_agree_are_not_certain():
    assert Interval.of([1.0] * 3).over_samples(24) == "100.0 % [86.2, 100.0] over 24 samples"
    assert Interval.of([0.5]).over_samples(1000) == "50.00 ± 3.09 % over 1000 samples"
    assert Interval.of([0.5]).over_samples(None) == "50.00 %"
    assert Interval.of([0.5, 0.6]).over_samples(24) == f"{Interval.of([0.5, 0.6])} %"
    assert "gains 12.50 points" in verdict(Interval.of([0.125] * 2), TRANSFER, 24)
    assert verdict(Interval.of([0.125] * 2), TRANSFER, 24).endswith("the same in all 2 seeds (3 of 24 samples).")


def test_a_gain_on_few_samples_is_also_a_count():
    assert verdict(Interval.of([0.125]), TRANSFER, 24).endswith("in one seed only (3 of 24 samples).")
    assert verdict(Interval.of([-0.125]), TRANSFER, 24).endswith("in one seed only (3 of 24 samples).")
    assert verdict(Interval.of([0.125]), TRANSFER, 2400).endswith("in one seed only.")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0.2, 0.21, 0.19], ("gains 20.00 ± 2.48", "(3 seeds)")),
        ([-0.2, -0.21, -0.19], ("HURTS", "it loses 20.00 ± 2.48", "(3 seeds)")),
        ([0.1, -0.05], ("no significant difference over 2 seeds: 2.50 ± 95.30",)),
        ([-0.1, 0.05], ("no significant difference over 2 seeds: -2.50 ± 95.30",)),
        ([0.0, 0.0], ("no significant difference over 2 seeds: 0.00 ± 0.00",)),
        ([0.3], ("gains 30.00", "in one seed only")),
        ([-0.3], ("loses 30.00", "in one seed only")),
    ],
)
def test_the_verdict_in_words(values, parts):
    for words in (TRANSFER, ADAPTATION):
        sentence = verdict(Interval.of_gain(values, [0.0] * len(values)), words)
        assert sentence.startswith(words.subject)
        assert sentence.endswith(".")
        for part in (*parts, words.points):
            assert part in sentence
        lost = "significant" not in sentence and values[0] < 0
        assert ("(negative transfer)" in sentence) == (lost and words is ADAPTATION)
        assert "significant" in sentence or words.over in sentence
