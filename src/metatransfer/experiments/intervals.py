"""Means over seeds with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


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
