"""Draws what benchmarks/memory.py and inner_loop.py --grow measured: results/memory.json and results/growth.json.

Usage: python benchmarks/curves.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Writes a PNG beside each file."""
    for name, draw in (("memory", memory), ("growth", growth)):
        path = RESULTS / f"{name}.json"
        figure = draw(json.loads(path.read_text(encoding="utf-8")))
        FigureCanvasAgg(figure).print_png(str(path.with_suffix(".png")))
        print(path.with_suffix(".png").name)


def memory(measured: dict) -> Figure:
    """Peak memory against inner steps, with and without recomputing them."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for (name, points), style in zip(measured["peak_mib"].items(), ("o-", "s--"), strict=True):
        axis.plot([int(steps) for steps in points], [value / 1024 for value in points.values()], style, label=name)
    axis.set(xlabel="inner steps", ylabel="peak above the start, GiB", ylim=(0, None))
    axis.set_xticks([int(steps) for steps in measured["peak_mib"]["kept"]])
    tasks, queries = measured["tasks"], measured["queries_per_class"]
    axis.set_title(f"Conv4-64, {tasks} tasks at once, 5-way 1-shot, {queries} queries", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(title="inner steps are", fontsize=8)
    return figure


def growth(measured: dict) -> Figure:
    """Time of one outer gradient against tasks, steps, ways and width."""
    rows = measured["rows"]
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, 4)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        sizes = [int(size) for size in row["best_s"]]
        times = [value * 1e3 for value in row["best_s"].values()]
        axis.loglog(sizes, times, "o-")
        axis.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], ":", color="#757575", label="proportional")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set(title=row["grows"], ylabel="ms")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
