"""How much of the gap between the single best method and the oracle ``lightning recommend`` closes on known tasks.

Each task of the shipped knowledge is left out, alone or with all tasks of its family, and a method is chosen for it by
a selector that knows the rest, from the methods that such data allow. A family is all tasks whose samples come from the
same images, the same table or the same generating function. A gap of 0 % is the method that is best on average over the
known tasks of this kind, 100 % the best method of each task. All tasks with training classes are of one family: without
it no task is left to learn from, so they are not counted there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from metatransfer.experiments.knowledge import FEW_TASKS, SHIPPED, Knowledge, read_json
from metatransfer.experiments.selector import StrategySelector

DIGITS = "handwritten digits", "typeset digits"
FAMILIES: dict[str, tuple[str, ...]] = {  # of data, with the beginnings of the names of their tasks
    DIGITS[0]: (DIGITS[0], *(f"{change} {DIGITS[0]}" for change in ("noisy", "turned", "inverted")), "table digits"),
    DIGITS[1]: (DIGITS[1], f"noisy {DIGITS[1]}"),
    "Glyphs": ("Glyphs", "noisy Glyphs", "turned Glyphs", "Ethiopic script", "Thai script", "Ugaritic script"),
    "iris": ("table iris",),
    "wine": ("table wine",),
    "breast_cancer": ("table breast_cancer",),
    "make_classification": ("table linear", "table clusters"),
    "make_blobs": ("table balls",),
    "make_gaussian_quantiles": ("table shells",),
    "make_moons": ("table moons",),
}


def family(task: str) -> str:
    """The only family of a task."""
    (found,) = (name for name, starts in FAMILIES.items() if task.startswith(starts))
    return found


def reached(knowledge: Knowledge, groups: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """``(T, 3)`` scores of the chosen, the single best and the best method of each task, without its group.

    NaN if fewer than five tasks are left.
    """
    kinds = np.array([kind(knowledge, task) for task in range(len(groups))])
    found = np.full((len(groups), 3), np.nan)
    for group, allowed in sorted(set(zip(groups.tolist(), kinds.tolist(), strict=True))):
        usable = knowledge.usable(allowed.split(", "))
        out = set(np.array(knowledge.tasks)[groups == group])
        kept = np.array([task not in out for task in usable.tasks])
        if kept.sum() < FEW_TASKS:
            continue
        known = usable.subset(kept)
        selector = StrategySelector(**settings).fit(known)
        tasks = np.flatnonzero((groups == group) & (kinds == allowed))
        scores = knowledge.scores[tasks][:, [knowledge.methods.index(name) for name in known.methods]]
        first = [known.methods.index(name) for name in selector.choose(knowledge.values[tasks])]
        best = known.methods.index(selector.single_best_)
        found[tasks] = np.stack([scores[np.arange(len(tasks)), first], scores[:, best], scores.max(1)], 1)
    return found


def kind(knowledge: Knowledge, task: int) -> str:
    """What the data of a task have, by the methods that were run on it."""
    run = np.array(knowledge.methods)[np.isfinite(knowledge.scores[task])]
    return ", ".join(sorted({need for name in run for need in knowledge.needs.get(name, ())}))


def main() -> None:
    """Measures, prints, writes results/knowledge.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("knowledge", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trees", type=int, default=None, help="trees of each forest, by default those of the file")
    parser.add_argument(
        "--left-out", nargs="+", choices=("family", "task"), default=["family", "task"],
        help="what to measure; the results of the other stay if they have the same settings",
    )  # fmt: skip
    options = parser.parse_args()
    content = read_json(options.knowledge, "the knowledge")
    knowledge = Knowledge.from_plain(content["knowledge"])
    settings = content["settings"] | ({"num_trees": options.trees} if options.trees else {})
    families = np.array([family(name) for name in knowledge.tasks])
    kinds = np.array([kind(knowledge, task) or "no images" for task in range(len(families))])
    found: dict[str, Any] = {"tasks": len(kinds), "families": len(set(families)), "methods": len(knowledge.methods),
                             "settings": settings}  # fmt: skip
    path = Path(__file__).parent / "results" / "knowledge.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("settings") == settings:
        found |= {name: one for name, one in earlier.items() if name.startswith(("family left out", "task left out"))}
    for left_out in options.left_out:
        groups = families if left_out == "family" else np.array(knowledge.tasks)
        runs = np.array([reached(knowledge, groups, {**settings, "seed": seed}) for seed in range(options.seeds)])
        for name in ("all", *np.unique(kinds)):
            rows = ((kinds == name) | (name == "all")) & np.isfinite(runs).all((0, 2))
            if not rows.any():
                continue
            chosen, single, oracle = runs[:, rows].mean(1).T
            closed = 100 * (chosen - single) / (oracle - single)
            found[f"{left_out} left out, {name}"] = {
                "tasks": int(rows.sum()), "single best": single.mean(), "chosen": chosen.mean(),
                "oracle": oracle.mean(), "gap closed, %": closed.tolist(), "mean": closed.mean(),
            }  # fmt: skip
            print(f"{left_out} left out, {name}: {rows.sum()} tasks, single best {single.mean():.4f}, chosen "
                  f"{chosen.mean():.4f}, oracle {oracle.mean():.4f}; closed {closed.mean():.1f} % "
                  f"{np.round(closed, 1)}", flush=True)  # fmt: skip
    path.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
