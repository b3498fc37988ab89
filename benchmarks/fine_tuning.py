"""What fine-tuning is worth on handwritten digits, by the number of labels per class.

A Conv4 pretrained on typeset characters (the weights that the package ships) beside the same network from scratch, on
the same labels and the same budget, over seeds; also pixel 1-NN. Writes results/fine_tuning.json and .png.
python benchmarks/fine_tuning.py
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from metatransfer import Conv4, Digits, Division, FineTuneModule, GradualUnfreezing, LabelledDataModule
from metatransfer.callbacks.run.report import machine
from metatransfer.drawing.episodes import to_pixels
from metatransfer.experiments.comparing import by_entry, measure_twins
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget
from metatransfer.methods.twins import TRANSFER

RESULTS = Path(__file__).parent / "results"
EPOCHS = {1: 120, 5: 60, 10: 30, 50: 30}


def measure(labels: int, seeds: int) -> dict[str, Interval]:
    """Accuracies by what was trained, with ``labels`` labels per class, and the gain."""
    epochs = EPOCHS[labels]
    data = LabelledDataModule(Digits(), batch_size=25, labels_per_class=labels, division=Division(test_fraction=0.5))
    torch.manual_seed(0)
    module = FineTuneModule(
        Conv4(weights="glyphs"),
        10,
        policy=GradualUnfreezing([epochs // 3, epochs // 2]),
        warmup_fraction=0.1,
        optimizer=partial(torch.optim.AdamW, lr=0.003),
    )
    budget = Budget(epochs, settings={"accelerator": "cpu"})
    values = by_entry([measure_twins(module, data, seed=seed, budget=budget, baselines=True) for seed in range(seeds)])
    gain = Interval.of_gain(values[TRANSFER.own], values[TRANSFER.reference])
    return {name: Interval.of(one) for name, one in values.items()} | {"gain": gain}


def draw(found: dict[int, dict[str, Interval]]) -> Figure:
    """Accuracy against labels per class, with intervals over seeds."""
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, color, marker in (
        (TRANSFER.own, "#1565c0", "o"),
        (TRANSFER.reference, "#c62828", "s"),
        ("pixel 1-NN", "#757575", "^"),
    ):
        rows = [found[labels][name] for labels in found]
        axis.errorbar(
            list(found),
            [100 * row.mean for row in rows],
            [100 * (row.ci95 or 0) for row in rows],
            marker=marker,
            color=color,
            capsize=3,
            label={TRANSFER.own: "fine-tuned from typeset characters"}.get(name, name),
        )
    axis.set(xscale="log", xlabel="labels per class", ylabel="test accuracy, %", title="Handwritten digits")
    axis.set_xticks(list(found), [str(labels) for labels in found])
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--labels", type=int, nargs="+", default=list(EPOCHS))
    options = parser.parse_args()
    start, found = time.perf_counter(), {}
    for labels in options.labels:
        found[labels] = measure(labels, options.seeds)
        print(labels, {name: str(interval) for name, interval in found[labels].items()}, flush=True)
    content = {
        "seeds": options.seeds,
        "interval": "95 %, Student's t over the seeds",
        "epochs": EPOCHS,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(torch.device("cpu")),
        "accuracy": {labels: {name: row._asdict() for name, row in rows.items()} for labels, rows in found.items()},
    }
    (RESULTS / "fine_tuning.json").write_text(json.dumps(content, indent=1) + "\n")
    from PIL import Image

    Image.fromarray(to_pixels(draw(found))).save(RESULTS / "fine_tuning.png", optimize=True)


if __name__ == "__main__":
    main()
