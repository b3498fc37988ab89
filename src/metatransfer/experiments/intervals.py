"""Means over seeds with confidence intervals, and the verdict on a gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from metatransfer.functional.intervals import SMALL, in_words, student
from metatransfer.methods.twins import Comparison


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval.

    Attributes:
        values: one value for each seed.
        mean: their mean.
        ci95: half-width of the 95% confidence interval (Student's t); ``None`` for one seed.
        low: lower end of the interval within the range of possible values.
        high: upper end, as ``low``.
    """

    values: list[float]
    mean: float
    ci95: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], lowest: float = 0.0) -> Interval:
        """The interval of values between ``lowest`` and 1."""
        number = len(values)
        mean = sum(values) / number
        if number < 2:
            return cls(list(values), mean, None)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
        half = student(number) * spread / math.sqrt(number)
        return cls(list(values), mean, half, max(lowest, mean - half), min(1.0, mean + half))

    @classmethod
    def of_gain(cls, scores: Sequence[float], reference: Sequence[float]) -> Interval:
        """The interval of the differences, paired by seed."""
        return cls.of([one - other for one, other in zip(scores, reference, strict=True)], lowest=-1.0)

    def __str__(self) -> str:
        return in_words(self.mean, self.ci95, self.low, self.high)

    def loss(self) -> Interval:
        """The interval of the values with the opposite sign."""
        return Interval.of([-value for value in self.values], lowest=-1.0)


def verdict(gain: Interval, words: Comparison, samples: int | None = None) -> str:
    """A sentence that says whether a method gains, loses, or makes no significant difference.

    Args:
        gain: over the seeds.
        words: of the comparison.
        samples: number of evaluated samples; a gain in one seed on few samples is also given as a count.
    """
    seeds, lost = len(gain.values), gain.mean < 0
    amount = f"{gain.loss() if lost else gain} {words.points}"
    gains, loses = f"gains {amount} over {words.over}", f"loses {amount} compared with {words.over}"
    if gain.ci95 is None:
        result = loses + words.loss if lost else gains
        few = f" ({abs(gain.mean) * samples:.0f} of {samples} samples)" if samples and samples < SMALL else ""
        return f"{words.subject} {result}, in one seed only{few}."
    if abs(gain.mean) <= gain.ci95:
        return f"{words.subject} makes no significant difference over {seeds} seeds: {gain} {words.points}."
    if lost:
        return f"{words.subject} HURTS{words.loss}: it {loses} ({seeds} seeds)."
    return f"{words.subject} {gains} ({seeds} seeds)."
