"""The reproduction ledger: every measured number beside the published one.

    python benchmarks/ledger.py                       writes LEDGER.md anew from results/*.json and published.yaml
    python benchmarks/ledger.py add NAME RESULTS      takes a run's results.json in, then does the same

RESULTS is what ``lightning test`` wrote. NAME is the row's name, such as ``omniglot-protonet-5w1s``; the published
number that it is held against stands under that name in published.yaml, with its source and, where ours misses it, why.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from metatransfer.experiments.intervals import Interval
from metatransfer.functional.intervals import in_words

FOLDER = Path(__file__).resolve().parent
# names in result files that were written before collections and data modules were separated
RENAMED = {"OmniglotEpisodes": "Omniglot", "SinusoidEpisodes": "Sinusoids", "TextDataModule": "Texts"}
OTHER_TARGETS = "accuracy on the other targets"  # a name in transferability.json
HEAD = """# Reproduction ledger

This file is made by `python benchmarks/ledger.py` from the files in `results/` (most of them are the `results.json` of
a run) and from `published.yaml`; do not edit it by hand. Intervals are 1.96 standard errors over test episodes or test
samples, or Student's 95 % interval over seeds if a row names several seeds. *Train* is the time until the tested
checkpoint was saved, *test* the time of the test. Both include the baselines and belong to the machine in the last
column.

"""
COLUMNS = ("row", "method", "data and protocol", "published", "ours", "baselines", "train", "test", "machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=["add"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("results", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "add":
        if arguments.results is None:
            parser.error("add needs NAME and RESULTS, the results.json of a test")
        add(arguments.name, arguments.results)
    text = ledger()
    (FOLDER / "LEDGER.md").write_text(text, encoding="utf-8")
    print(f"{FOLDER.name}/LEDGER.md: {text.count(chr(10) + '| ') - 2} rows")


def add(name: str, path: Path) -> None:
    """Copies a run's results, without the paths of the machine that it ran on.

    Raises:
        SystemExit: not the results of a test, or a row without a published number.
    """
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("stage") != "test":
        raise SystemExit(f"'{path}' is of a {results.get('stage')}, but the ledger holds tests: run lightning test.")
    if name not in published():
        raise SystemExit(f"published.yaml has no '{name}': write down the published number and its source first.")
    for local in ("checkpoint", "file"):
        results.pop(local, None)
    (FOLDER / "results" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def published() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8"))
    return found


def ledger() -> str:
    """The whole text.

    Raises:
        SystemExit: a row whose results are missing.
    """
    rows, notes = [], []
    for name, paper in published().items():
        file = paper.get("table", paper.get("seeds", paper.get("scores", name)))
        path = FOLDER / "results" / f"{file}.json"
        if not path.exists():
            raise SystemExit(f"published.yaml has '{name}', but results/{file}.json is missing: run it, or remove it.")
        results = json.loads(path.read_text(encoding="utf-8"))
        kind = next((kind for key, kind in KINDS.items() if key in paper), row)
        rows.append(kind(name, paper, results))
        notes.append(f"- **{name}**: `{paper['command']}`. Published: {paper['source']}. {paper['note']}")
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |", *rows]
    return HEAD + "\n".join(lines) + "\n\n## Notes\n\n" + "\n".join(notes) + "\n"


def trained_under(results: dict) -> dict:
    """The protocol of the training, or that of the test if nothing was trained."""
    return results.get("trained_under", results["protocol"])


def row(name: str, paper: dict[str, str], results: dict) -> str:
    card, metric = trained_under(results), paper.get("metric", "accuracy")
    baselines = [f"{label} {number(numbers, metric)}" for label, numbers in results["baselines"].items()]
    machine = results["machine"]
    where = machine.get("accelerator") or f"{machine['processor']}, {machine['threads']} threads"
    cells = (
        name,
        card["method"]["name"],
        protocol(results),
        str(paper["published"]),
        f"**{number(results['metrics'], metric)}**",
        "; ".join(baselines),
        duration(results["trained_seconds"]) if "trained_seconds" in results else "none",
        duration(results["seconds"]),
        where,
    )
    return "| " + " | ".join(cells) + " |"


def mean_row(name: str, paper: dict[str, str], results: dict) -> str:
    """The mean of a method over many pairs of domains, out of a table that one script makes."""
    own, machine = results["methods"][paper["method"]], results["machine"]
    plain = results["methods"][own["classifier"]]
    cells = (
        name,
        f"AdaptedFeaturesModule, {paper['method']}",
        f"mean of {len(own['pairs'])} pairs of domains; {paper['protocol']}",
        str(paper["published"]),
        f"**{own['mean']:.1f}**",
        f"{own['classifier']} of the source alone {plain['mean']:.1f}",
        f"{duration(own['seconds'])}, all pairs",
        "with it",
        f"{machine['processor']}, {machine['threads']} threads",
    )
    return "| " + " | ".join(cells) + " |"


def seeds_row(name: str, paper: dict[str, str], results: dict) -> str:
    """A method beside its source-only twin over seeds, by ``domain_adaptation.py``; Student's intervals."""
    runs = results["methods"][paper["method"]].values()
    found = {key: Interval.of([run[key] for run in runs]) for key in ("adapted", "source only")}
    oracle = [run["target-trained"] for run in runs if "target-trained" in run]
    beside = [f"source only {found['source only']}"]
    beside += [f"target-trained {Interval.of(oracle)}"] if oracle else []
    cells = (
        name,
        paper["module"],
        f"{paper['protocol']}; {len(runs)} seeds",
        str(paper["published"]),
        f"**{found['adapted']}**",
        "; ".join(beside),
        f"{duration(sum(run['seconds'] for run in runs) / len(runs))} with its twin",
        "with it",
        f"{results['machine']}, {results['threads']} threads",
    )
    return "| " + " | ".join(cells) + " |"


def scores_row(name: str, paper: dict[str, str], results: dict) -> str:
    """The correlations of a transferability score with fine-tuned accuracy, by ``transferability.py``."""
    found, beside = (results["correlations"][score] for score in (paper["method"], OTHER_TARGETS))
    by_target = [value for target, value in found["pearson"].items() if target != "mean"]
    networks = len(next(iter(results["targets"].values())))
    cells = (
        name,
        f"`{paper['function']}`",
        f"{paper['protocol']}; {networks} source networks, {len(by_target)} targets, {results['seeds']} seeds",
        str(paper["published"]),
        f"**{found['pearson']['mean']:.3f}**, by target {min(by_target):.2f} to {max(by_target):.2f}; "
        f"Spearman {found['spearman']['mean']:.3f}",
        f"{OTHER_TARGETS} as the score {beside['pearson']['mean']:.3f}; Spearman {beside['spearman']['mean']:.3f}",
        f"{duration(results['seconds'])} for all scores",
        "with it",
        f"{results['machine']['processor']}, {results['machine']['threads']} threads",
    )
    return "| " + " | ".join(cells) + " |"


KINDS = {"seeds": seeds_row, "table": mean_row, "scores": scores_row}


def protocol(results: dict) -> str:
    data, method = results["protocol"]["data"], results["protocol"]["method"]
    if results.get("samples"):
        learned = data["train_batches"]
        count = f"{learned['labels_per_class']} labels per class" if learned["labels_per_class"] else learned["samples"]
        tested = f"{data['classes']} classes, trained on {count}, {results['samples']} test samples"
        return f"{RENAMED.get(data['data'], data['data'])}; {tested}; seed {results['protocol'].get('seed')}"
    shape = data["eval_episode"]
    shots = f"{shape['num_shots']}-shot"
    ways = f"{shape['num_ways']}-way {shots}" if "num_ways" in shape else shots
    parts = [
        RENAMED.get(data["data"], data["data"]),
        data.get("split", ""),
        f"{ways}, {shape['num_queries']} queries, {results['episodes']} episodes",
        f"rotations {data['rotations']['test']}" if "rotations" in data else "",
        f"BatchNorm {method['batch_norm']}" if "batch_norm" in method else "",
        f"seed {results['protocol'].get('seed')}",
    ]
    if changed := results.get("protocol_differences"):
        parts.append("tested unlike trained: " + ", ".join(changed))
    return "; ".join(part for part in parts if part)


def number(numbers: dict, metric: str) -> str:
    found = numbers[metric]
    scale, digits = (100, 2) if metric == "accuracy" else (1, 3)
    interval = [found.get(part) for part in ("ci95", "low", "high")]
    return in_words(found["value"], *interval, scale=scale, digits=digits)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
