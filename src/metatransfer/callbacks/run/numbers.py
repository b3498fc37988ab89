"""The parts of ``results.json``: numbers, the machine, labels that are only for the report."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metatransfer.methods.evaluation.base import Numbers


def number(value: Tensor | float) -> float | None:
    """A number for JSON: ``None`` for NaN and infinity, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


def numbers_of(metrics: Mapping[str, Tensor | float], prefix: str) -> Numbers:
    """The logged metrics with a prefix, each with its confidence interval."""
    found: Numbers = {}
    for path in (path for path in metrics if path.startswith(f"{prefix}/") and not path.endswith("_ci95")):
        numbers = found[path.removeprefix(f"{prefix}/")] = {"value": number(metrics[path])}
        if f"{path}_ci95" in metrics:
            numbers["ci95"] = number(metrics[f"{path}_ci95"])
    return found


def withheld_card(withheld: Mapping[int, Numbers], state: Numbers, selected_by: str | None) -> dict[str, Any]:
    """The accuracy on withheld labels of the selected state and of the best state, and the gap between them."""
    own = state.get("accuracy")
    reached = own["value"] if own is not None else None
    seen = [one["accuracy"]["value"] for one in withheld.values() if "accuracy" in one]
    best = max((value for value in [*seen, reached] if value is not None), default=None)
    return {
        "selected_by": selected_by,
        "accuracy": own,
        "best_accuracy": best,
        "validations": len(seen),
        "gap": None if best is None or reached is None else 100 * (best - reached),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware of a run."""
    found = {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def processor_name() -> str:
    """The name of the processor, as the operating system reports it."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.*)", info.read_text(encoding="utf-8") if info.exists() else "", re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
