"""Recommends a method for your data, from the results of methods on other tasks.

For two domains, it tells how far apart they are and whether their classes are the same.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metatransfer.adapters import Labelled
from metatransfer.checks import check_count
from metatransfer.cli.entries import Candidate, Situation, collection_of, judged, open_collection, read_data
from metatransfer.data import Collection, Source
from metatransfer.data.serving.splits import few_labels
from metatransfer.data.sources import Encoder, encoded, read_samples, subset
from metatransfer.errors import UserError
from metatransfer.experiments import Recommendation, StrategySelector
from metatransfer.experiments.description import described
from metatransfer.experiments.knowledge import SHIPPED
from metatransfer.experiments.outlook import outlook
from metatransfer.storage import write_atomically

NESTED = ("data",)
MAIN = {"data": "source"}
_SAMPLES = 1000  # read for the task features
_COMPARED = 3  # methods of the command at the end
_Read = tuple[Source, Tensor, np.ndarray]


def arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--data", type=dict, required=True,
        help="path or name of the data; options as for fit: --data.source PATH or NAME; for two domains "
        "--data.sources.NAME and --data.targets.NAME",
    )  # fmt: skip
    parser.add_argument(
        "--knowledge", type=str | None, default=None,
        help="JSON file written by StrategySelector.save (default: the results that come with the package)",
    )  # fmt: skip
    parser.add_argument("--ways", type=int | None, default=None, help="classes of an episode")
    parser.add_argument("--shots", type=int | None, default=None, help="labels per class of an episode")
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing the samples")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file for the recommendation")


def run(settings: Namespace) -> None:
    """Describes the data, prints the recommendation, and writes it to ``output``.

    Raises:
        UserError: the data cannot be opened, or have no samples of numbers with classes.
    """
    if settings.shots is not None and settings.ways is None:
        raise UserError(
            f"--shots {settings.shots} describes episodes, which also need --ways: add it, or give "
            f"--data.labels_per_class {settings.shots} for fixed classes."
        )
    data = read_data(settings.data)
    found = _of_domains(data, settings) if "targets" in data or "sources" in data else _of_classes(data, settings)
    if settings.output:
        write_atomically(settings.output, json.dumps(found, indent=1) + "\n")


# ---- one data set


def _of_classes(data: Mapping[str, Any], settings: Namespace) -> dict[str, Any]:
    if not isinstance(data.get("source"), str | Mapping):
        raise UserError("data need a source: give --data PATH or NAME, or --data.sources and --data.targets.")
    collection = open_collection(data["source"])
    kind, reason = judged({**data, **({"task": {}} if settings.ways else {})}, collection)
    source, x, chosen = _samples(collection, settings.seed, data.get("labels_per_class"))
    features = described(
        x, source.labels[chosen],
        ways=settings.ways, shots=settings.shots, all_labels=source.labels, seed=settings.seed,
    )  # fmt: skip
    has = {"images": x.dim() == 4, "training classes": kind == "new classes"}
    selector = StrategySelector.load(settings.knowledge or SHIPPED, [name for name, given in has.items() if given])
    found = selector.predict(features)
    name = Path(data["source"]).name if isinstance(data["source"], str) else type(collection).__name__
    _show(found, name, selector, str(Situation(kind, reason, "", name)))
    command = _command(found, data, settings)
    if command:
        print(f"To check the first {_COMPARED}: {command}")
    return {**_plain(found, features), "command": command}


def _samples(collection: Collection, seed: int, labels: int | None = None) -> _Read:
    """At most a thousand training samples ``(N, *shape)``, and their indices; of few labels, only these samples."""
    source = _training(collection)
    count = len(source.labels)  # before anything is read, as data without classes raise an error
    if labels is not None:
        check_count(labels_per_class=labels)
        source = few_labels(subset(source, np.arange(count)), labels, seed)
    chosen = _some(len(source), seed)
    return source, _read(source, collection.encoder(source), chosen), chosen


def _training(collection: Collection) -> Source:
    parts = collection.opened()
    source = parts["train" if "train" in parts else "all"]
    if not isinstance(source, Source):
        raise UserError(f"{type(collection).__name__} generates tasks: give data with samples.")
    return source


def _some(count: int, seed: int) -> np.ndarray:
    """At most a thousand of ``count`` places, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:_SAMPLES])


def _read(source: Source, encoder: Encoder | None, chosen: np.ndarray) -> Tensor:
    x = read_samples(encoded(source, encoder), torch.from_numpy(chosen), torch.device("cpu"))
    if not isinstance(x, Tensor):
        raise _texts(source.name)
    return x


def _texts(who: str) -> UserError:
    return UserError(f"{who} holds texts, but recommend needs numbers: give their embeddings as arrays.")


def _command(found: Recommendation, data: Mapping[str, Any], settings: Namespace) -> str:
    """The comparison of the first methods; empty if they are not entries of a comparison."""
    names = [one.name for one in found.ranking[:_COMPARED]]
    try:
        for name in names:
            Candidate.parse(name)
    except UserError:
        return ""
    shape = {"num_ways": settings.ways, "num_shots": settings.shots}
    options = {**_flat("data", data), **{f"--data.task.{name}": value for name, value in shape.items() if value}}
    words = [str(word) for option in options.items() for word in option]
    return shlex.join(["lightning", "compare", *words, "--methods", *names])


def _flat(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        place = f"{prefix}.{name}"
        found |= _flat(place, value) if isinstance(value, Mapping) else {f"--{place.removeprefix('--')}": value}
    return found


def _show(found: Recommendation, data: str, selector: StrategySelector, situation: str) -> None:
    known = selector.knowledge_
    table = Table(title=f"Methods for {data}, from {len(known.tasks)} known tasks", title_justify="left")
    for name, side in (("", "right"), ("method", "left"), ("expected score", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for place, one in enumerate(found.ranking, 1):
        table.add_row(str(place), one.name, f"{one.score:.3f} ± {one.uncertainty:.3f}")
    console = Console()
    console.print(table)
    lines = [f"{known.about}\nYour data: {situation}."] if known.about else []
    console.print("\n".join([*lines, *_sentences(found)]), soft_wrap=True, highlight=False)


def _sentences(found: Recommendation) -> list[str]:
    """The reason for a recommendation and the doubts about it."""
    near = ", ".join(f"{task} (distance {distance:.2g}, best: {method})" for task, distance, method in found.nearest)
    telling = ", ".join(
        f"{name} = {value:.3g} (above {100 * below:.0f} % of them)" for name, _, value, below in found.telling
    )
    lines = [
        "The expected scores are means ± standard deviations over the trees of a random forest.",
        f"Nearest known tasks: {near}.",
        f"Most important features, compared with the known tasks: {telling}.",
    ]
    return [*lines, *(f"Do not rely on this order: {doubt}." for doubt in found.doubts)]


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


# ---- two domains


def _of_domains(data: Mapping[str, Any], settings: Namespace) -> dict[str, Any]:
    """The outlook on a transfer; of several sources or targets, on all their samples together."""
    sides = [data.get(side) for side in ("sources", "targets")]
    if not all(isinstance(one, Mapping) and one for one in sides):
        raise UserError("two domains are needed, each with a name: give --data.sources.NAME and --data.targets.NAME.")
    known, new = (
        {f"{which} '{name}'": open_collection(collection_of(one)) for name, one in side.items()}  # type: ignore[union-attr]
        for which, side in zip(("source", "target"), sides, strict=True)
    )
    sources = {who: _training(one) for who, one in known.items()}
    names = sorted({name for source in sources.values() for name in source.class_names})
    targets = {who: _unlabelled(one) for who, one in new.items()}
    read = _read_domains(known | new, sources | {who: one for who, (one, _) in targets.items()}, settings.seed)
    labels = [
        names.index(source.class_names[y]) for who, source in sources.items() for y in source.labels[read[who][1]]
    ]
    classes = [given for _, given in targets.values()]
    target_classes = sorted(set().union(*classes)) if all(classes) else []
    x, others = (torch.cat([read[who][0] for who in side]) for side in (known, new))
    found = outlook(Labelled(x, torch.tensor(labels)), others, names, target_classes)
    print(found)
    return {**found._asdict(), "sentence": str(found)}


def _unlabelled(collection: Collection) -> tuple[Source, set[str]]:
    """The training samples of a target, and the names of its classes, if it has labels."""
    parts = collection.unlabelled_parts()
    part = parts["train" if "train" in parts else next(iter(parts))]
    return part.source, set() if part.withheld is None else set(part.withheld.tolist()) - {""}


def _read_domains(
    collections: Mapping[str, Collection], sources: Mapping[str, Source], seed: int
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """At most a thousand samples of each domain and their indices, all encoded like the first, as in training."""
    for who, collection in collections.items():
        if collection.of_texts:
            raise _texts(who)
    encoders = {who: collection.encoder(sources[who]) for who, collection in collections.items()}
    (first, encoder), *others = encoders.items()
    for who, other in others:
        if (other is None) != (encoder is None):
            raise UserError(f"all domains or none must be tables, but {who} and {first} differ: give data of one kind.")
    chosen = {who: _some(len(source), seed) for who, source in sources.items()}
    read = {who: (_read(source, encoder, chosen[who]), chosen[who]) for who, source in sources.items()}
    shape, *_ = (tuple(x.shape[1:]) for x, _ in read.values())
    for who, (x, _) in read.items():
        if tuple(x.shape[1:]) != shape:
            raise UserError(
                f"all domains must have samples of the same shape, but those of {first} are {shape} and those of {who} "
                f"{tuple(x.shape[1:])}: set the same image_size and channels, or the same number of features."
            )
    return read
