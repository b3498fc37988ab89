"""The parts of ``results.json``: numbers, the machine, labels that are only for the report."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metatransfer.methods.evaluation.base import Numbers

_INTERVAL = ("ci95", "low", "high")


class Overruled(NamedTuple):
    """Weights that replace those of the best checkpoint, such as a fallback.

    Attributes:
        metrics: their numbers on the validation split.
        withheld: their numbers that may not select a checkpoint.
        sentence: the reason.
        selected_by: what selected them.
    """

    metrics: Numbers
    withheld: Numbers
    sentence: str
    selected_by: str


def number(value: float) -> float | None:
    """A number for JSON: ``None`` for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def numbers_of(metrics: Mapping[str, float], prefix: str = "") -> Numbers:
    """The logged metrics with a prefix (``"val/"``), with intervals and, for accuracies, the number of samples."""
    logged = {name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)}
    numbers: Numbers = {}
    for name, value in logged.items():
        base, _, part = name.rpartition("_")
        if base in logged and part in _INTERVAL:
            continue
        interval = {part: number(logged[f"{name}_{part}"]) for part in _INTERVAL if f"{name}_{part}" in logged}
        numbers[name] = {"value": number(value), **interval}
        samples = logged.get(f"{name.rpartition('/')[0]}/samples".removeprefix("/"))
        if "low" in interval and samples is not None:
            numbers[name]["of"] = samples
    return numbers


def withheld_card(
    withheld: Mapping[int, Numbers], chosen: int | None, selected_by: str | None, overruled: Overruled | None
) -> dict[str, Any]:
    """The accuracy on withheld labels of the selected state and of the best state, and the gap between them."""
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


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware of a run."""
    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def processor_name() -> str:
    """The name of the processor, as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
