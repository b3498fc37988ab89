"""Means over seeds with confidence intervals, and the verdict on a gain."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from metatransfer.functional.intervals import SMALL, in_words, student, wilson
from metatransfer.methods.twins import Comparison

_SAME = 1e-9  # no two fractions of samples are so close


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
    def of(cls, values: Sequence[float], lowest: float = 0.0) -> "Interval":
        """The interval of values between ``lowest`` and 1."""
        number = len(values)
        mean = sum(values) / number
        if number < 2:
            return cls(list(values), mean, None)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
        half = student(number) * spread / math.sqrt(number)
        return cls(list(values), mean, half, max(lowest, mean - half), min(1.0, mean + half))

    @classmethod
    def of_gain(cls, scores: Sequence[float], reference: Sequence[float]) -> "Interval":
        """The interval of the differences, paired by seed."""
        return cls.of([one - other for one, other in zip(scores, reference, strict=True)], lowest=-1.0)

    def __str__(self) -> str:
        return in_words(self.mean, self.ci95, self.low, self.high)

    @property
    def alike(self) -> bool:
        """Whether there is one seed only, or all seeds have the same value, so that they say nothing of the spread."""
        return self.ci95 is None or self.ci95 < _SAME

    def over_samples(self, samples: int | None) -> str:
        """An accuracy in percent with its interval; over the samples if the seeds say nothing of the spread."""
        if not (samples and self.alike):
            return f"{self} %"
        low, high = wilson(self.mean, samples)
        words = in_words(self.mean, (high - low) / 2, low, high, unit=" %")
        return f"{words} over {samples} samples"


def verdict(gain: Interval, words: Comparison, samples: int | None = None) -> str:
    """A sentence that says whether a method gains, loses, or makes no significant difference.

    Args:
        gain: over the seeds.
        words: of the comparison.
        samples: number of evaluated samples; a gain in one seed on few samples is also given as a count.
    """
    seeds, lost = len(gain.values), gain.mean < 0
    size = Interval.of([-value if lost else value for value in gain.values], lowest=-1.0)
    amount = f"{100 * size.mean:.2f}" if gain.alike else str(size)
    gains = f"gains {amount} {words.points} over {words.over}"
    loses = f"loses {amount} {words.points} compared with {words.over}"
    if gain.ci95 is None or (gain.alike and abs(gain.mean) > _SAME):
        often = "in one seed only" if seeds == 1 else f"the same in all {seeds} seeds"
        few = f" ({size.mean * samples:.0f} of {samples} samples)" if samples and samples < SMALL else ""
        return f"{words.subject} {loses + words.loss if lost else gains}, {often}{few}."
    if abs(gain.mean) <= gain.ci95:
        return f"{words.subject} makes no significant difference over {seeds} seeds: {gain} {words.points}."
    if lost:
        return f"{words.subject} HURTS{words.loss}: it {loses} ({seeds} seeds)."
    return f"{words.subject} {gains} ({seeds} seeds)."
