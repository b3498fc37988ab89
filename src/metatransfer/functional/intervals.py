"""95% intervals of means: bounded where scores are fractions of correct answers, Student's t elsewhere."""

import math
from typing import NamedTuple

SMALL = 100  # samples: with fewer, an accuracy is also given as a count
_Z = 1.96
_LOPSIDED = 0.1  # of the half-width: beyond, "mean ± half-width" would misplace the interval


class Estimate(NamedTuple):
    """A mean with its 95% interval.

    Attributes:
        value: the mean.
        ci95: half the length of the interval; NaN if it is not known.
        low: lower end, within [0, 1]; NaN for scores that are not fractions.
        high: upper end, as ``low``.
    """

    value: float
    ci95: float
    low: float = math.nan
    high: float = math.nan


def wilson(value: float, count: float) -> tuple[float, float]:
    r"""Ends of Wilson's 95% interval of a proportion (Wilson 1927, "Probable inference").

    .. math:: \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}, \qquad z = 1.96

    Args:
        value: the proportion ``p``, in [0, 1].
        count: the number of trials ``n``, which need not be an integer.
    """
    square = _Z**2 / count
    centre, half = value + square / 2, math.sqrt(_Z**2 * value * (1 - value) / count + square**2 / 4)
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def student(count: float) -> float:
    """The 0.975 quantile of Student's t for ``count`` values; NaN for fewer than two."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(count - 1, 0.975)) if count > 1 else math.nan


def estimate(count: float, total: float, squares: float, answers: float = 0) -> Estimate:
    r"""The mean of ``count`` independent scores with its 95% interval.

    Without ``answers`` the half-width is :math:`t_{n-1}\,s/\sqrt n`. Scores that are fractions of correct answers get
    Wilson's interval, which stays within [0, 1] and has a width even if all answers are correct. Its number of trials
    is the number of answers if each score is one answer. Answers of the same task are not independent; there, it is the
    effective number :math:`p(1-p)\,n/s^2`, at most ``answers``, times :math:`(1.96/t_{n-1})^2` (Korn, Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts").

    Args:
        count: number of scores ``n``: episodes, or samples.
        total: their sum.
        squares: the sum of their squares.
        answers: number of all answers; 0 if scores are not fractions of correct answers.
    """
    mean, quantile = total / count if count else math.nan, student(count)
    if not math.isfinite(mean):
        return Estimate(mean, math.nan)
    variance = max(0.0, squares - total * mean) / (count - 1) / count if count > 1 else math.nan
    if not (answers and 0 <= mean <= 1):
        return Estimate(mean, quantile * math.sqrt(variance))
    trials = answers
    if answers > count:
        trials = min(trials, mean * (1 - mean) / variance if variance > 0 else trials) * (_Z / quantile) ** 2
    if not trials > 0:
        return Estimate(mean, math.nan)
    low, high = wilson(mean, trials)
    return Estimate(mean, (high - low) / 2, low, high)


def in_words(value: float, *interval: float | None, scale: float = 100.0, unit: str = "", digits: int = 2) -> str:
    """A number with its interval: ``98.22 ± 0.20``, or ``91.7 [64.6, 98.5]`` where that would be lopsided.

    Args:
        value: the number.
        interval: half of its length and, if they are known, its ends; ``None`` for unknown numbers.
        scale: factor of all numbers.
        unit: follows the number.
        digits: after the decimal point.
    """
    half, low, high = (*interval, None, None, None)[:3]
    if half is None:
        return f"{scale * value:.{digits}f}{unit}"
    if low is None or high is None or abs((low + high) / 2 - value) <= _LOPSIDED * half:
        return f"{scale * value:.{digits}f} ± {scale * half:.{digits}f}{unit}"
    digits = 1 if scale * half >= 1 else digits
    return f"{scale * value:.{digits}f}{unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
