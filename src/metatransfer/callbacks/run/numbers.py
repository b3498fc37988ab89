"""Numbers of a run as its results hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from metatransfer.methods.evaluation.base import Numbers


class Overruled(NamedTuple):
    """Weights that took the place of the best checkpoint's.

    Attributes:
        metrics: their numbers on the validation split.
        withheld: their numbers that no run may be selected by.
        sentence: why.
        selected_by: what preferred them.
    """

    metrics: Numbers
    withheld: Numbers
    sentence: str
    selected_by: str


def number(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: ``None`` for these."""
    return value if math.isfinite(value) else None


def numbers_of(metrics: Mapping[str, float], prefix: str) -> Numbers:
    """Metrics with their intervals."""
    logged = {
        name.removeprefix(f"{prefix}/"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{prefix}/")
    }
    numbers: Numbers = {}
    for name, value in logged.items():
        if name.endswith("_ci95"):
            continue
        numbers[name] = {"value": number(value)}
        if f"{name}_ci95" in logged:
            numbers[name]["ci95"] = number(logged[f"{name}_ci95"])
    return numbers


def withheld_card(
    withheld: Mapping[int, Numbers], chosen: int | None, selected_by: str | None, overruled: Overruled | None
) -> dict[str, Any]:
    """What withheld labels say of the selected state of a fit, and of the best state there was."""
    state = overruled.withheld if overruled else withheld.get(list(withheld)[-1] if chosen is None else chosen, {})
    own = state.get("accuracy")
    reached = own["value"] if own is not None else None
    seen = [one["accuracy"]["value"] for one in withheld.values() if "accuracy" in one]
    best = max((value for value in [*seen, reached] if value is not None), default=None)
    return {
        "selected_by": overruled.selected_by if overruled else selected_by,
        "accuracy": own,
        "best_accuracy": best,
        "validations": len(seen),
        "gap": None if best is None or reached is None else 100 * (best - reached),
    }
