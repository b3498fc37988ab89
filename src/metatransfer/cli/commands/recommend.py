"""Recommends a method for your data, from the results of methods on other tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metatransfer.data import Collection, Source
from metatransfer.data.collections import open_path
from metatransfer.data.sources import encoded, read_samples
from metatransfer.errors import UserError
from metatransfer.experiments import Recommendation, StrategySelector
from metatransfer.functional import task_features
from metatransfer.storage import write_atomically

_SAMPLES = 1000  # read for the task features


def arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--data", type=str, required=True, help="path of the data: a folder, a table or arrays")
    parser.add_argument("--knowledge", type=str, required=True, help="JSON file of StrategySelector.save")
    parser.add_argument("--ways", type=int | None, default=None, help="classes of an episode")
    parser.add_argument("--shots", type=int | None, default=None, help="labels per class of an episode")
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing the samples")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file for the recommendation")


def run(settings: Namespace) -> None:
    """Describes the data, prints the recommendation, and writes it to ``output``."""
    selector = StrategySelector.load(settings.knowledge)
    features = _features(open_path(settings.data), settings)
    found = selector.predict(features)
    _show(found, settings.data, len(selector.knowledge_.tasks))
    if settings.output:
        write_atomically(settings.output, json.dumps(_plain(found, features), indent=1) + "\n")


def _features(collection: Collection, settings: Namespace) -> dict[str, float]:
    """The task features of the training samples, of which at most a thousand are read."""
    parts = collection.opened()
    source = parts["train" if "train" in parts else "all"]
    if not isinstance(source, Source):
        raise UserError(f"{type(collection).__name__} generates tasks: give data with samples.")
    labels = source.labels  # before anything is read, as data without classes raise an error
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(source))[:_SAMPLES])
    x = read_samples(encoded(source, collection.encoder(source)), torch.from_numpy(chosen), torch.device("cpu"))
    if not isinstance(x, Tensor):
        raise UserError(f"'{settings.data}' holds texts, but recommend needs numbers: give their embeddings as arrays.")
    return task_features(
        x.flatten(1).numpy(), labels[chosen],
        ways=settings.ways, shots=settings.shots, all_labels=labels, seed=settings.seed,
    )._asdict()  # fmt: skip


def _show(found: Recommendation, data: str, tasks: int) -> None:
    table = Table(title=f"Methods for {Path(data).name}, from {tasks} known tasks", title_justify="left")
    for name, side in (("", "right"), ("method", "left"), ("expected score", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for place, one in enumerate(found.ranking, 1):
        table.add_row(str(place), one.name, f"{one.score:.3f} ± {one.uncertainty:.3f}")
    console = Console()
    console.print(table)
    console.print(_sentences(found), soft_wrap=True, highlight=False)


def _sentences(found: Recommendation) -> str:
    """The reason for a recommendation and the doubts about it, one sentence per line."""
    near = ", ".join(f"{task} (distance {distance:.2g}, best: {method})" for task, distance, method in found.nearest)
    telling = ", ".join(f"{name} = {value:.3g} (above {below:.0%})" for name, _, value, below in found.telling)
    lines = [
        "The expected scores are means ± standard deviations over the trees of a random forest.",
        f"Nearest known tasks: {near}.",
        f"Most telling features, with the share of known tasks below: {telling}.",
    ]
    return "\n".join([*lines, *(f"Do not rely on this order: {doubt}." for doubt in found.doubts)])


def _plain(found: Recommendation, features: dict[str, float]) -> dict[str, Any]:
    """As values for JSON, ``None`` in place of NaN."""
    return {
        "ranking": [{name: _number(value) for name, value in one._asdict().items()} for one in found.ranking],
        "nearest": found.nearest,
        "telling": found.telling,
        "doubts": found.doubts,
        "features": {name: _number(value) for name, value in features.items()},
    }


def _number(value: Any) -> Any:  # noqa: ANN401
    return None if value != value else value
