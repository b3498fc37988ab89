"""Intervals: against scipy, what they cover in simulations, and their words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from metatransfer.functional.intervals import estimate, in_words, wilson


def of(scores, answers=0):
    scores = np.asarray(scores, dtype=float)
    return estimate(len(scores), float(scores.sum()), float(np.square(scores).sum()), answers)


@pytest.mark.parametrize(("right", "count"), [(12, 12), (0, 5), (11, 12), (1, 1), (300, 1000)])
def test_samples_get_wilsons_interval(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    found = of([1] * right + [0] * (count - right), count)
    assert found.value == pytest.approx(right / count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert found.ci95 == pytest.approx((found.high - found.low) / 2)
    assert (found.low, found.high) == wilson(right / count, count)


def test_values_of_any_size_get_students():
    values = np.random.default_rng(0).normal(5, 2, 9)
    found, (low, high) = of(values), stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert found.ci95 == pytest.approx((high - low) / 2)
    assert math.isnan(found.low)
    assert of(values, 90)[:2] == pytest.approx(found[:2]), "these are not fractions, whatever is claimed"


def test_many_episodes_get_the_interval_of_the_literature():
    scores = np.random.default_rng(0).binomial(75, np.random.default_rng(1).beta(45, 5, 600)) / 75
    found = of(scores, 600 * 75)
    assert found.ci95 == pytest.approx(1.96 * scores.std(ddof=1) / 600**0.5, rel=0.01)
    assert in_words(*found).startswith(f"{100 * scores.mean():.2f} ± ")


def test_few_episodes_say_little_about_their_spread():
    scores = np.array([0.2, 0.5, 0.9])
    mean, effective = scores.mean(), scores.mean() * (1 - scores.mean()) / (scores.var(ddof=1) / 3)
    found = of(scores, 3 * 15)
    assert (found.low, found.high) == pytest.approx(wilson(mean, effective * (1.96 / 4.302653) ** 2), abs=1e-6)


def test_equal_scores_are_not_certain():
    assert 0.95 < of([1.0] * 12, 12 * 15).low < 0.99
    assert of([1.0] * 12, 12).low < 0.8
    assert 0 < of([0.8] * 3, 3 * 5).ci95 < 0.4
    assert all(math.isnan(part) for part in of([0.5], 15)[1:]), "one episode tells nothing of others"


@pytest.mark.parametrize("scores", [[], [math.nan, 1.0], [math.inf, 1.0]])
def test_what_is_not_finite_has_no_interval(scores):
    found = of(scores, 2 * len(scores))
    assert not math.isfinite(found.value)
    assert math.isnan(found.ci95)


@pytest.mark.parametrize("episodes", [3, 10, 30])
@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("queries", [1, 5, 15])
def test_coverage(episodes, accuracy, queries):
    """Tasks of unequal difficulty; with 3 tasks of 5 queries, Student's interval covers as little as 24 %."""
    rng = np.random.default_rng(0)
    spread = 1 / 0.05 - 1  # beta-binomial with an intra-task correlation of 0.05
    difficulty = rng.beta(accuracy * spread, (1 - accuracy) * spread, (1500, episodes))
    scores = rng.binomial(queries, difficulty) / queries
    covered = []
    for row in scores:
        found = of(row, episodes * queries)
        assert 0 <= found.low <= found.value <= found.high <= 1
        covered.append(found.low <= accuracy <= found.high)
    assert np.mean(covered) > 0.91


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ((0.9822, 0.002, 0.9801, 0.9841), "98.22 ± 0.20"),
        ((0.9822, 0.002), "98.22 ± 0.20"),
        ((11 / 12, 0.169, 0.646, 0.985), "91.7 [64.6, 98.5]"),
        ((1.0, 0.1213, 0.7575, 1.0), "100.0 [75.8, 100.0]"),
        ((0.5, None, None, None), "50.00"),
        ((0.999, 0.004, 0.9921, 0.9999), "99.90 [99.21, 99.99]"),
    ],
)
def test_lopsided_intervals_are_told_by_their_ends(number, words):
    assert in_words(*number) == words
    assert in_words(*number, unit=" %").replace(" %", "") == words
