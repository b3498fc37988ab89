"""Options of gradient-based methods from flat names, for tests that combine them."""

from __future__ import annotations

import inspect
from dataclasses import replace

INNER = {
    "inner_steps": "steps",
    "inner_lr": "lr",
    "train_inner_steps": "train_steps",
    "first_order": "first_order",
    "checkpoint": "checkpoint",
}
EXECUTION = {"batching", "chunk_size", "compile"}


def grouped(kind, **flat):
    """Keyword arguments of ``kind``: its own defaults, changed by flat options; others are passed on."""
    default = {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items()}
    inner = replace(default["inner"], **{INNER[name]: value for name, value in flat.items() if name in INNER})
    execution = replace(default["execution"], **{name: flat[name] for name in EXECUTION & flat.keys()})
    rest = {name: value for name, value in flat.items() if name not in INNER and name not in EXECUTION}
    return {"inner": inner, "execution": execution, **rest}
