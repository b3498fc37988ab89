"""Do transferability scores rank source networks as fine-tuning does? Nine sources, five targets, shipped data only.

Every source is a Conv4 with 32 filters. The scores see the target's training samples and the frozen source alone; the
truth is the test accuracy after all weights are fine-tuned with a new head, in the mean over seeds. No learning rate is
chosen: sources, targets and seeds share one setting, which was fixed before any correlation was seen.

python benchmarks/transferability.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau, pearsonr, spearmanr
from torch import Tensor, nn

from metatransfer import Conv4, Digits, Glyphs, TypesetDigits
from metatransfer.data.sources import Source
from metatransfer.functional import h_score, leep, log_me, nce, trans_rate

RESULTS = Path(__file__).parent / "results"
WIDTH, BATCH, RATE = 32, 32, 1e-3
TARGET_EPOCHS = 15
OTHERS = "accuracy on the other targets"  # as a score: one order of the sources for all targets


class Samples(NamedTuple):
    """Images ``(N, 1, 28, 28)`` and labels ``(N,)`` without gaps."""

    x: Tensor
    y: Tensor


def read(source: Source, scripts: tuple[str, ...] = (), classes: int | None = None) -> Samples:
    """All samples of a source, or those of the classes whose names start with one of some scripts."""
    names = [place for place, name in enumerate(source.class_names) if not scripts or name.startswith(scripts)]
    kept = np.flatnonzero(np.isin(source.labels, names[:classes]))
    labels = torch.from_numpy(np.unique(source.labels[kept], return_inverse=True)[1])
    return Samples(source.read(torch.from_numpy(kept), torch.device("cpu")), labels)  # type: ignore[arg-type]


def rotated(samples: Samples) -> Samples:
    """The same images turned by 0 to 3 quarters, which are the labels."""
    turns = torch.arange(len(samples.x)) % 4
    return Samples(torch.stack([x.rot90(int(k), (1, 2)) for x, k in zip(samples.x, turns, strict=True)]), turns)


def divided(samples: Samples, shots: int, limit: int) -> tuple[Samples, Samples]:
    """``shots`` training samples of each class, and up to ``limit`` others for the test."""
    order = torch.randperm(len(samples.y), generator=torch.Generator().manual_seed(0))
    places = [order[samples.y[order] == one] for one in range(int(samples.y.max()) + 1)]
    train, test = (torch.cat([rows[part] for rows in places]) for part in (slice(shots), slice(shots, shots + limit)))
    return Samples(samples.x[train], samples.y[train]), Samples(samples.x[test], samples.y[test])


def train(network: nn.Module, samples: Samples, steps: int, seed: int) -> None:
    """Adam on random batches, with the learning rate decayed to 0 by a cosine."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    make = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(samples.y), generator=make) for _ in range(steps * BATCH // len(samples.y) + 2)]
    )
    for rows in order[: steps * BATCH].split(BATCH):
        loss = F.cross_entropy(network(samples.x[rows]), samples.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def with_head(backbone: Conv4, classes: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(backbone, nn.Linear(WIDTH, classes))


def sources() -> dict[str, tuple[Samples, int]]:
    """Each source's samples and its number of steps; 0 leaves random weights."""
    glyphs = Glyphs().opened()["train"]
    all_of_them = read(glyphs)
    shuffled = torch.randperm(len(all_of_them.y), generator=torch.Generator().manual_seed(1))
    return {
        "random weights": (read(glyphs, classes=20), 0),
        "Glyphs": (all_of_them, 3000),
        "Glyphs, 100 steps": (all_of_them, 100),
        "20 characters": (read(glyphs, classes=20), 300),
        "Latin and Cyrillic": (read(glyphs, ("Latin", "Cyrillic")), 1000),
        "Han and Hiragana": (read(glyphs, ("Han", "Hiragana")), 1000),
        "typeset digits": (read(TypesetDigits().opened()["train"]), 1000),
        "rotations": (rotated(all_of_them), 1000),
        "shuffled labels": (Samples(all_of_them.x, all_of_them.y[shuffled]), 1000),
    }


def targets() -> dict[str, tuple[Samples, Samples]]:
    """Training and test samples of each target; none is part of a source."""
    val, test = (Glyphs().opened()[split] for split in ("val", "test"))
    return {
        "handwritten digits": divided(read(Digits().opened()["all"]), 20, 100),
        "typeset digits of other typefaces": divided(read(TypesetDigits().opened()["test"]), 20, 70),
        "Ethiopic": divided(read(test, ("Ethiopic",)), 8, 12),
        "Telugu": divided(read(test, ("Telugu",)), 8, 12),
        "Yi": divided(read(val, ("Yi",)), 8, 12),
    }


@torch.no_grad()
def scores(source: nn.Sequential, samples: Samples) -> dict[str, float]:
    """Every score of the frozen source."""
    features = source[0](samples.x)
    outputs = source[1](features)
    found = {
        "LogME": log_me(features, samples.y),
        "H-score": h_score(features, samples.y),
        "H-score, shrinkage": h_score(features, samples.y, shrinkage=True),
        "TransRate": trans_rate(features, samples.y),
        "LEEP": leep(outputs.softmax(-1), samples.y),
        "NCE": nce(outputs.argmax(-1), samples.y),
    }
    return {name: float(value) for name, value in found.items()}


def fine_tuned(source: nn.Sequential, name: str, task: tuple[Samples, Samples], seed: int) -> float:
    """Test accuracy of the whole network after fine-tuning."""
    backbone = Conv4(hidden_channels=WIDTH)
    backbone.load_state_dict(source[0].state_dict())
    samples, test = task
    network = with_head(backbone, int(samples.y.max()) + 1, seed)
    if name == "random weights" and seed:  # other seeds draw other weights
        torch.manual_seed(seed)
        network = with_head(Conv4(hidden_channels=WIDTH), int(samples.y.max()) + 1, seed)
    train(network, samples, TARGET_EPOCHS * len(samples.y) // BATCH, seed)
    with torch.no_grad():
        return float((network(test.x).argmax(-1) == test.y).double().mean())


def correlations(measured: dict[str, dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Pearson, Spearman and Kendall of each score with the accuracy, by target and in the mean."""
    kinds = {"pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau}
    found: dict[str, dict[str, dict[str, float]]] = {}
    accuracies = {
        target: {name: np.mean(row["accuracy"]) for name, row in rows.items()} for target, rows in measured.items()
    }
    for score in [*next(iter(next(iter(measured.values())).values()))["scores"], OTHERS]:
        found[score] = {}
        for kind, function in kinds.items():
            by_target = {}
            for target, rows in measured.items():
                if score == OTHERS:
                    rest = [found for other, found in accuracies.items() if other != target]
                    given = [np.mean([found[name] for found in rest]) for name in rows]
                else:
                    given = [row["scores"][score] for row in rows.values()]
                by_target[target] = float(function(given, list(accuracies[target].values()))[0])
            found[score][kind] = {**by_target, "mean": float(np.mean(list(by_target.values())))}
    return found


def draw(measured: dict[str, dict], found: dict) -> None:
    """A panel for each score and target."""
    import matplotlib.pyplot as plt

    names = [name for name in found if name != OTHERS]
    figure, axes = plt.subplots(len(measured), len(names), figsize=(2.3 * len(names), 2.1 * len(measured)))
    for line, (target, rows) in zip(axes, measured.items(), strict=True):
        for axis, score in zip(line, names, strict=True):
            for source, row in rows.items():
                axis.plot(row["scores"][score], 100 * np.mean(row["accuracy"]), "o", ms=5, label=source)
            axis.set_title(f"{score}: {found[score]['pearson'][target]:.2f}", fontsize=8)
            axis.tick_params(labelsize=6)
        line[0].set_ylabel(f"{target}\naccuracy (%)", fontsize=7)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=9, fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(RESULTS / "transferability.png", dpi=80)


def main() -> None:
    """Trains, scores, fine-tunes, prints, writes results/transferability.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start, tasks, networks = time.perf_counter(), targets(), {}
    for name, (samples, steps) in sources().items():
        torch.manual_seed(0)
        networks[name] = with_head(Conv4(hidden_channels=WIDTH), int(samples.y.max()) + 1, 0)
        train(networks[name], samples, steps, 0) if steps else networks[name].eval()
        print(f"{time.perf_counter() - start:.0f} s: trained {name}", flush=True)
    measured: dict[str, dict] = {}
    for target, task in tasks.items():
        measured[target] = {}
        for name, network in networks.items():
            accuracy = [fine_tuned(network, name, task, seed) for seed in range(options.seeds)]
            measured[target][name] = {"scores": scores(network, task[0]), "accuracy": accuracy}
            print(f"{time.perf_counter() - start:.0f} s: {target}, {name}: {100 * np.mean(accuracy):.1f} %", flush=True)
    found = correlations(measured)
    for score, kinds in found.items():
        print(score, {kind: round(values["mean"], 3) for kind, values in kinds.items()})
    content = {
        "targets": measured,
        "correlations": found,
        "samples": {target: [len(part.y) for part in task] for target, task in tasks.items()},
        "seeds": options.seeds,
        "seconds": time.perf_counter() - start,
        "machine": {"processor": processor(), "threads": options.threads, "load": os.getloadavg()[0]},
    }
    (RESULTS / "transferability.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(measured, found)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
