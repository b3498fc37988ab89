"""How much of the gap between the single best method and the oracle ``lightning recommend`` closes on known tasks.

Each task of the shipped knowledge is left out, alone or with all tasks of its collection, and a method is chosen for it
by a selector that knows the rest, from the methods that such data allow. A gap of 0 % is the method that is best on
average over the known tasks of this kind, 100 % the best method of each task.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from metatransfer.experiments.knowledge import SHIPPED, Knowledge, read_json
from metatransfer.experiments.selector import StrategySelector


def chosen(knowledge: Knowledge, task: int, left_out: np.ndarray, settings: dict[str, Any]) -> tuple[float, ...]:
    """Scores on a task of the chosen method, the single best one and the best one."""
    selector = StrategySelector(**settings).fit(knowledge.subset(~left_out).usable(_needs(knowledge, task)))
    scores = dict(zip(knowledge.methods, knowledge.scores[task], strict=True))
    (first,) = selector.choose(knowledge.values[task])
    usable = [scores[name] for name in selector.knowledge_.methods]
    return scores[first], scores[selector.single_best_], max(usable)


def main() -> None:
    """Measures, prints, writes results/knowledge.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("knowledge", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    content = read_json(options.knowledge, "the knowledge")
    knowledge = Knowledge.from_plain(content["knowledge"])
    collections = np.array([name.partition(":")[0] for name in knowledge.tasks])
    places = np.arange(len(collections))
    kinds = np.array([" and ".join(sorted(_needs(knowledge, task))) or "no images" for task in places])
    found: dict[str, Any] = {"tasks": len(places), "methods": len(knowledge.methods)}
    for name, outs in (("task", places[:, None] == places), ("collection", collections[:, None] == collections)):
        runs = np.array([
            [chosen(knowledge, task, outs[task], {**content["settings"], "seed": seed}) for task in places]
            for seed in range(options.seeds)
        ])  # fmt: skip
        for kind in ("all", *np.unique(kinds)):
            rows = (kinds == kind) | (kind == "all")
            reached, single, oracle = runs[:, rows].mean(1).T
            closed = 100 * (reached - single) / (oracle - single)
            found[f"{name} left out, {kind}"] = {
                "tasks": int(rows.sum()), "single": single.mean(), "chosen": reached.mean(), "oracle": oracle.mean(),
                "gap closed, %": closed.tolist(), "mean": closed.mean(),
            }  # fmt: skip
            print(f"{name} left out, {kind}: {rows.sum()} tasks, single best {single.mean():.4f}, chosen "
                  f"{reached.mean():.4f}, oracle {oracle.mean():.4f}; closed {closed.mean():.1f} % "
                  f"{np.round(closed, 1)}", flush=True)  # fmt: skip
    path = Path(__file__).parent / "results" / "knowledge.json"
    path.write_text(json.dumps(found, indent=1, default=float) + "\n")


def _needs(knowledge: Knowledge, task: int) -> set[str]:
    """What the data of a task have, by the methods that were run on it."""
    known = np.isfinite(knowledge.scores[task])
    return {need for name in np.array(knowledge.methods)[known] for need in knowledge.needs.get(name, ())}


if __name__ == "__main__":
    main()
