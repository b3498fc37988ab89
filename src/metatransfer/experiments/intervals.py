"""Means over seeds with confidence intervals, and the verdict on a gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from metatransfer.methods.twins import Comparison


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval.

    Attributes:
        values: one value for each seed.
        mean: their mean.
        ci95: half-width of the 95% confidence interval (Student's t); ``None`` for one seed.
    """

    values: list[float]
    mean: float
    ci95: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of values."""
        from scipy.stats import t  # slow to import

        number = len(values)
        mean = sum(values) / number
        if number < 2:
            return cls(list(values), mean, None)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
        return cls(list(values), mean, float(t.ppf(0.975, number - 1)) * spread / math.sqrt(number))

    @classmethod
    def of_gain(cls, scores: Sequence[float], reference: Sequence[float]) -> Interval:
        """The interval of the differences, paired by seed."""
        return cls.of([one - other for one, other in zip(scores, reference, strict=True)])

    def __str__(self) -> str:
        interval = f" ± {100 * self.ci95:.2f}" if self.ci95 is not None else ""
        return f"{100 * self.mean:.2f}{interval}"


def verdict(gain: Interval, words: Comparison) -> str:
    """A sentence that says whether a method gains, loses, or makes no significant difference."""
    amount = f"{Interval(gain.values, abs(gain.mean), gain.ci95)} {words.points}"
    gains, loses = f"gains {amount} over {words.over}", f"loses {amount} compared with {words.over}"
    if gain.ci95 is None:
        result = gains if gain.mean >= 0 else loses + words.loss
        return f"{words.subject} {result}, in one seed only."
    seeds = len(gain.values)
    if abs(gain.mean) <= gain.ci95:
        sign = "-" if gain.mean < 0 else ""
        return f"{words.subject} makes no significant difference over {seeds} seeds: {sign}{amount}."
    if gain.mean > 0:
        return f"{words.subject} {gains} ({seeds} seeds)."
    return f"{words.subject} HURTS{words.loss}: it {loses} ({seeds} seeds)."
