"""Numbers of a run as its results hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Numbers = dict[str, dict[str, float | None]]


class Overruled(NamedTuple):
    """Weights that took the place of the best checkpoint's.

    Attributes:
        metrics: their numbers on the validation split.
        oracle: what the target's labels say of them.
        sentence: why.
    """

    metrics: Numbers
    oracle: Numbers
    sentence: str


def number(value: float) -> float | None:
    """A number as JSON knows it.

    Args:
        value: any.

    Returns:
        ``None`` for what is not finite.
    """
    return value if math.isfinite(value) else None


def numbers_of(metrics: Mapping[str, float], prefix: str) -> Numbers:
    """Metrics with their intervals.

    Args:
        metrics: as they were logged.
        prefix: which, without the ``/``.

    Returns:
        By name without the prefix: ``value``, and ``ci95`` where there is one.
    """
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


def oracle_card(
    oracle: Mapping[int, Numbers], chosen: int | None, card: dict[str, Any], overruled: Overruled | None
) -> dict[str, Any]:
    """What labels of the target say of the state of a fit that was selected, and of the best there was.

    Args:
        oracle: their numbers by the steps of the validations.
        chosen: the step of the selected state; the last one where left out.
        card: the protocol.
        overruled: weights that took its place.

    Returns:
        ``selected_by``; ``accuracy`` of the state; ``best_accuracy`` of all; ``validations``, how many there were; and
        ``gap``, what the best has more, in points.
    """
    state = overruled.oracle if overruled else oracle.get(list(oracle)[-1] if chosen is None else chosen, {})
    own = state.get("accuracy")
    reached = own["value"] if own is not None else None
    seen = [one["accuracy"]["value"] for one in oracle.values() if "accuracy" in one]
    best = max((value for value in [*seen, reached] if value is not None), default=None)
    selection = card.get("selection")
    validator = card["method"].get("train_selection") if selection == "max val/selection" else None
    return {
        "selected_by": "source only, preferred by most validators" if overruled else validator or selection,
        "accuracy": own,
        "best_accuracy": best,
        "validations": len(seen),
        "gap": None if best is None or reached is None else 100 * (best - reached),
    }
