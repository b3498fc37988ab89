"""Measures methods on many tasks with few labels, and writes the knowledge that ``lightning recommend`` ships with.

    python tools/build_knowledge.py measure WORK   # appends to WORK/scores.jsonl; run it again to resume
    python tools/build_knowledge.py write WORK OUTPUT

A method is an entry of ``lightning compare``, so that each name is a command. Methods that learn from training classes
are trained once for each data set, for a few epochs instead of those of their configuration. All methods see the same
support sets and queries.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from knowledge_tasks import Samples, Task, base_sets, base_tasks, image_tasks, table_tasks
from lightning.pytorch import Trainer

from metatransfer.batches import Episode
from metatransfer.cli.entries import Candidate, Situation
from metatransfer.cli.entry_data import data_section
from metatransfer.cli.main import MetaTransferCLI, run_lightning
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.sources import Collection, Source, TensorSource
from metatransfer.experiments.description import described
from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.per_task import per_task
from metatransfer.experiments.selector import StrategySelector
from metatransfer.methods.fitted import FittedModule

RAW = "frozen_features --model.backbone RawFeatures"
PROBE = "--model.classifier LinearProbe --model.classifier.learning_rates 1 --model.classifier.lowest 0.1"
IMAGES, CLASSES = "images", "training classes"
METHODS: dict[str, tuple[str, ...]] = {  # and what they need
    RAW: (),
    f"{RAW} --model.classifier.distance euclidean": (),
    f"{RAW} --model.classifier NearestNeighbors --model.classifier.k 1 --model.classifier.distance euclidean": (),
    f"{RAW} --model.classifier LinearSVM": (),
    f"{RAW} {PROBE} --model.classifier.highest 0.1": (),
    "own/table": (),
    "frozen_features": (IMAGES,),
    "frozen_features --model.classifier.distance euclidean": (IMAGES,),
    "frozen_features --model.classifier LinearSVM": (IMAGES,),
    "finetune": (IMAGES,),
    "finetune --model.backbone.weights null": (IMAGES,),
    "protonet": (IMAGES, CLASSES),
    "pretrain": (IMAGES, CLASSES),
    "maml": (IMAGES, CLASSES),
    "proto_maml": (IMAGES, CLASSES),
}
EPOCHS = 2  # of methods that learn from training classes
CHUNK = 4  # tasks at once
TREES = 40  # of the recommendation, which should take seconds; benchmarks/knowledge.py measures it
DESCRIBED = 2  # draws whose features are averaged
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
}  # fmt: skip


class Given(Collection):
    """A labelled training part, for the fit of a classifier."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def parts(self) -> dict[str, Source]:
        """The samples for training; some of them also stand in for the other splits, which are not used."""
        names = [str(one) for one in range(self.samples.y.max() + 1)]
        source = TensorSource(torch.from_numpy(self.samples.x), self.samples.y, names, "the samples")
        return {"train": source, "val": source, "test": source}


def built(entry: str, data: dict[str, Any], arguments: tuple[str, ...], work: Path) -> tuple[Any, Any]:
    """The method and the data module that an entry gives on the command line."""
    candidate, found = Candidate.parse(entry), []
    config = work / "entry.yaml"
    content = {"seed_everything": 0, "model": candidate.config["model"], "data": data, "trainer": QUIET}
    config.write_text(yaml.safe_dump(content))

    class Building(MetaTransferCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {"fit": MetaTransferCLI.subcommands()["fit"]}

        def fit(self, model: Any, datamodule: Any = None, **_: Any) -> None:  # noqa: ANN401
            found.append((model, datamodule))

    run_lightning(Building, ["fit", "--config", str(config), *arguments, *candidate.arguments])
    return found[0]


@cache
def learner(entry: str, shape: tuple[int, ...], ways: int, work: Path) -> Any:  # noqa: ANN401
    """An untrained classifier for samples of a shape."""
    path = work / "shape.npz"
    np.savez(path, x=np.zeros((4 * ways, *shape), np.float32), y=np.arange(4 * ways) % ways)
    data = {"class_path": "LabelledDataModule", "init_args": {"source": str(path), "division": {"test_fraction": 0.25}}}
    return built(entry, data, (), work)[0]


def trained(entry: str, name: str, parts: dict[str, Samples], work: Path) -> Any:  # noqa: ANN401
    """A method after its training on the training classes."""
    path = work / "base.npz"
    arrays = {f"x_{part}": np.rint(255 * one.x).astype(np.uint8) for part, one in parts.items()}
    labels = {f"y_{part}": np.array([f"{part} {label}" for label in one.y]) for part, one in parts.items()}
    arrays["x_val"], labels["y_val"] = arrays["x_test"][:400], np.char.add("val ", labels["y_test"][:400])
    np.savez(path, **arrays, **labels)  # type: ignore[arg-type]
    situation = Situation("new classes", "", "", name)
    shape = {"eval_task": {"num_ways": 2, "num_shots": 1, "num_queries": 1}}  # nothing is validated here
    data = data_section(Candidate.parse(entry), situation, {"source": str(path), **shape}, 0)
    module, served = built(entry, data, (), work)
    Trainer(max_epochs=EPOCHS, **QUIET).fit(module, datamodule=served)
    return module.eval()


def scores(entry: str, task: Task, module: Any, work: Path) -> list[float]:  # noqa: ANN401
    """The accuracy on each support set, of a method that was trained before or is fitted to each."""
    draws = [task.draw(number) for number in range(task.draws)]
    if module is None:
        module = learner(entry, task.samples.x.shape[1:], len(task.counts), work)
        epochs = (Candidate.parse(entry).config.get("trainer") or {}).get("max_epochs", 30)
        if task.base is None and not isinstance(module, FittedModule):
            return [_after_fit(entry, module, epochs, *draw, seed) for seed, draw in enumerate(draws)]
        module = per_task(module, epochs)
    found: list[float] = []
    for start in range(0, len(draws), CHUNK):
        episode = _episode(draws[start : start + CHUNK])
        with torch.no_grad():
            found += module.score(module(episode), episode.query_y).tolist()
    return found


def _episode(draws: list[tuple[Samples, Samples]]) -> Episode:
    parts = [[getattr(draw[side], part) for draw in draws] for side in (0, 1) for part in ("x", "y")]
    return Episode(*(torch.from_numpy(np.stack(part)) for part in parts))


def _after_fit(entry: str, module: Any, epochs: int, support: Samples, query: Samples, seed: int) -> float:  # noqa: ANN401
    own = Candidate.parse(entry).config["data"]["init_args"]
    data = LabelledDataModule(Given(support), batch_size=own["batch_size"], seed=seed)
    twin = module.restarted(seed)
    Trainer(max_epochs=epochs, **QUIET).fit(twin, datamodule=data)
    with torch.no_grad():
        answers = twin.eval()(torch.from_numpy(query.x)).argmax(-1).numpy()
    return float((answers == query.y).mean())


def measure(work: Path, only: list[str]) -> None:
    """Measures what ``scores.jsonl`` lacks."""
    work.mkdir(parents=True, exist_ok=True)
    path, sets = work / "scores.jsonl", base_sets()
    done = {(row["task"], row["method"]) for row in rows(path)}
    groups: dict[str, list[Task]] = {}
    for task in all_tasks(sets):
        groups.setdefault(task.collection, []).append(task)
    for collection, tasks in groups.items():
        if only and collection not in only:
            continue
        for method, needs in METHODS.items():
            missing = [task for task in tasks if (task.name, method) not in done and fits(needs, task)]
            if not missing:
                continue
            began = time.perf_counter()
            module = trained(method, collection, sets[collection], work) if CLASSES in needs else None
            took = time.perf_counter() - began
            for task in missing:
                began = time.perf_counter()
                found = scores(method, task, module, work)
                row = {"task": task.name, "method": method, "scores": np.round(found, 4).tolist(),
                       "seconds": round(time.perf_counter() - began + took, 2)}  # fmt: skip
                took = 0.0
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row["seconds"], task.name, "|", method, round(float(np.mean(found)), 3), flush=True)


def fits(needs: tuple[str, ...], task: Task) -> bool:
    """Whether a task has what a method needs."""
    return (IMAGES not in needs or task.samples.x.ndim == 4) and (CLASSES not in needs or task.base is not None)


def all_tasks(sets: dict[str, dict[str, Samples]]) -> Iterator[Task]:
    """All tasks."""
    yield from image_tasks()
    yield from table_tasks()
    yield from base_tasks(sets)


def rows(path: Path) -> list[dict[str, Any]]:
    """The measured scores."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(work: Path, output: Path) -> None:
    """Writes the mean scores with the features of the tasks."""
    sets = base_sets()
    means = {(row["task"], row["method"]): float(np.mean(row["scores"])) for row in rows(work / "scores.jsonl")}
    tasks = [task for task in all_tasks(sets) if any((task.name, method) in means for method in METHODS)]
    scores = np.array([[means.get((task.name, method), np.nan) for method in METHODS] for task in tasks])
    values = [one for _, one in sorted(described_tasks(work / "features.jsonl", tasks, sets).items())]
    table = np.array([[float(f"{value:.6g}") for value in one.values()] for one in values])
    names, collections = tuple(task.name for task in tasks), {task.collection for task in tasks}
    needs = {method: given for method, given in METHODS.items() if given}
    about = (
        f"The known tasks have few labels and come from {len(collections)} data sets: characters and digits of this "
        f"package, tables of scikit-learn, and synthetic tables. Methods that learn from training classes were trained "
        f"for {EPOCHS} epochs only."
    )
    knowledge = Knowledge(names, tuple(values[0]), tuple(METHODS), table, np.round(scores, 4), needs, about)
    StrategySelector(num_trees=TREES).fit(knowledge).save(output)
    print(f"{len(names)} tasks, {len(METHODS)} methods, {output.stat().st_size} bytes")


def described_tasks(path: Path, tasks: list[Task], sets: dict[str, dict[str, Samples]]) -> dict[int, dict[str, float]]:
    """The features of the tasks by their place; a file keeps those of an earlier call."""
    known = {row["task"]: row["features"] for row in rows(path)}
    found: dict[int, dict[str, float]] = {}
    for place, task in enumerate(tasks):
        key = f"{task.base}: training classes" if task.base else task.name  # without ways and shots
        if key not in known:
            known[key] = features_of(task, sets)
            with path.open("a") as file:
                file.write(json.dumps({"task": key, "features": known[key]}) + "\n")
        shape = {"ways": float(len(task.counts)), "shots": float(max(task.counts))} if task.base else {}
        found[place] = {**known[key], **shape}
    return found


def features_of(task: Task, sets: dict[str, dict[str, Samples]]) -> dict[str, float]:
    """What a user of such data could measure: on the training classes, or else on the labelled samples of a draw."""
    if task.base is None:
        drawn = [task.draw(number)[0] for number in range(min(task.draws, DESCRIBED))]
        found = [described(torch.from_numpy(one.x), one.y) for one in drawn]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what is not defined in any draw
            return {name: float(np.nanmean([one[name] for one in found])) for name in found[0]}
    base = sets[task.base]["train"]
    chosen = np.sort(np.random.default_rng(0).permutation(len(base.y))[:1000])
    return described(torch.from_numpy(base.x[chosen]), base.y[chosen], all_labels=base.y)


def main() -> None:
    """Measures or writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "write"))
    parser.add_argument("work", type=Path)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="collections")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step == "measure":
        measure(options.work, options.only)
    elif options.output is None:
        parser.error("write needs OUTPUT")
    else:
        write(options.work, options.output)


if __name__ == "__main__":
    main()
