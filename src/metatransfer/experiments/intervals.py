"""Means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean over seeds.

    Attributes:
        values: one for each seed.
        mean: of them.
        ci95: half-width of its 95% interval by Student's t; ``None`` for one seed.
    """

    values: list[float]
    mean: float
    ci95: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Mean and interval of values."""
        from scipy.stats import t  # a second to import, which other runs need not pay

        number = len(values)
        mean = sum(values) / number
        if number < 2:
            return cls(list(values), mean, None)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
        return cls(list(values), mean, float(t.ppf(0.975, number - 1)) * spread / math.sqrt(number))

    @classmethod
    def of_gain(cls, scores: Sequence[float], reference: Sequence[float]) -> Interval:
        """Mean and interval of paired differences: equal places are the same seed."""
        return cls.of([one - other for one, other in zip(scores, reference, strict=True)])

    def __str__(self) -> str:
        interval = f" ± {100 * self.ci95:.2f}" if self.ci95 is not None else ""
        return f"{100 * self.mean:.2f}{interval}"
