"""How much of the gap between the single best method and the oracle a StrategySelector closes on an ASlib scenario.

The folder holds ``feature_values.arff``, ``algorithm_runs.arff`` and ``cv.arff`` of a scenario whose performance is a
quality to be maximised, e.g. OPENML-WEKA-2017 (Bischl et al. 2016, AIJ 237). The folds are its own. A gap of 0 % is the
single best method (chosen on the training folds), 100 % the oracle.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.selector import StrategySelector

SETTINGS = {
    "pairwise, 8 candidates (the default)": ("pairwise", 8),
    "pairwise, 5 candidates": ("pairwise", 5),
    "regression, 8 candidates": ("regression", 8),
}


def rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the attributes and the cells of an ARFF file without quotes."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("%")]
    start = next(place for place, line in enumerate(lines) if line.lower() == "@data")
    names = [line.split()[1] for line in lines[:start] if line.lower().startswith("@attribute")]
    return names, [line.split(",") for line in lines[start + 1 :]]


def scenario(folder: Path) -> tuple[Knowledge, np.ndarray]:
    """The table of a scenario, and the fold of each task."""
    _, runs = rows(folder / "algorithm_runs.arff")
    names, features = rows(folder / "feature_values.arff")
    folds = {row[0]: int(float(row[2])) for row in rows(folder / "cv.arff")[1]}
    scores = {(row[0], row[2]): float(row[3]) for row in runs if row[4] == "ok"}
    tasks, methods = sorted(folds), sorted({row[2] for row in runs})
    values = {row[0]: [np.nan if cell in {"?", "NaN"} else float(cell) for cell in row[2:]] for row in features}
    table = Knowledge(
        tuple(tasks), tuple(names[2:]), tuple(methods),
        np.array([values[task] for task in tasks]),
        np.array([[scores.get((task, method), np.nan) for method in methods] for task in tasks]),
    )  # fmt: skip
    return table, np.array([folds[task] for task in tasks])


def reached(
    table: Knowledge, folds: np.ndarray, selector: StrategySelector, doubts: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the chosen methods, of the single best, and of the choice with the single best where it is doubted."""
    chosen, single, careful = (np.zeros(len(folds)) for _ in range(3))
    for fold in np.unique(folds):
        test = np.flatnonzero(folds == fold)
        selector.fit(table.subset(folds != fold))
        best = table.methods.index(selector.single_best_)
        for task in test:
            found = selector.predict(table.values[task]) if doubts else None
            name = found.ranking[0].name if found else selector.choose(table.values[task])[0]
            single[task] = table.scores[task, best]
            chosen[task] = table.scores[task, table.methods.index(name)]
            careful[task] = single[task] if found and found.doubts else chosen[task]
    return chosen, single, careful


def main() -> None:
    """Measures, prints, writes results/selector.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="some of the names, by default all")
    parser.add_argument("--doubts", action="store_true", help="also with the single best where the answer is doubted")
    options = parser.parse_args()
    table, folds = scenario(options.folder)
    oracle = table.scores.max(1).mean()
    content: dict[str, object] = {"tasks": len(folds), "methods": len(table.methods), "oracle": oracle}
    for name in options.settings:
        start, closed, cautious = time.perf_counter(), [], []
        for seed in range(options.seeds):
            selector = StrategySelector(*SETTINGS[name], seed=seed)
            chosen, single, careful = reached(table, folds, selector, options.doubts)
            gap = oracle - single.mean()
            closed.append(100 * (chosen.mean() - single.mean()) / gap)
            cautious.append(100 * (careful.mean() - single.mean()) / gap)
        content[name] = {"gap closed, %": closed, "mean": np.mean(closed), "single best": single.mean()}
        if options.doubts:
            content[name] |= {"single best if doubted, %": cautious}
        doubted = f"; with the single best where doubted {np.mean(cautious):.1f} %" if options.doubts else ""
        print(f"{name}: {np.round(closed, 1)}, mean {np.mean(closed):.1f} % of the gap {single.mean():.4f} to "
              f"{oracle:.4f}{doubted}; {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        path = Path(__file__).parent / "results" / "selector.json"
        path.write_text(json.dumps(content, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
