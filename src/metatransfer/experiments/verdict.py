"""The verdict on a gain."""

from __future__ import annotations

from metatransfer.experiments.intervals import Interval
from metatransfer.methods.twins import Comparison


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
