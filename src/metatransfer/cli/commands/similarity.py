"""Measures distances between data sets."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from metatransfer.adapters import Labelled
from metatransfer.callbacks.run.run_folder import claimed_version
from metatransfer.checks import check_positive, check_seed
from metatransfer.data import collections
from metatransfer.data.sources import Collection, Source, encoded, read_samples
from metatransfer.errors import UserError
from metatransfer.experiments.similarity import MEASURES, default_backbone, distances
from metatransfer.nn import Backbone
from metatransfer.storage import atomic_file, csv_text, short_path, write_atomically


def arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--data", type=str, nargs="+", required=True, help="paths of data, or collections by name")
    parser.add_argument(
        "--measure", type=str, nargs="+", default=None,
        help=f"any of {', '.join(MEASURES)} (default: task2vec if the network has weights, mmd and ot)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=500, help="maximum number of samples per data set")
    parser.add_argument("--classes", type=int, default=20, help="maximum number of classes per data set")
    parser.add_argument(
        "--draws", type=int | None, default=None, help="labels drawn per sample for task2vec (default: exact)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing the classes and samples")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: a new one in lightning_logs)")
    parser.add_subclass_arguments(Backbone, "backbone", required=False, help="network that computes the features")


def run(settings: Namespace) -> None:
    """Prints the distances, and writes ``similarity.csv`` and ``similarity.png``.

    Raises:
        UserError: data that cannot be opened or compared, or an invalid option.
    """
    check_positive(samples=settings.samples, classes=settings.classes, draws=settings.draws)
    check_seed(seed=settings.seed)
    twice = next((name for name in settings.data if settings.data.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--data names '{twice}' twice: name each data set once.")
    tasks = {name: _chosen(name, settings) for name in settings.data}
    backbone = settings.get("backbone") or default_backbone(next(iter(tasks.values())).x)
    found = distances(tasks, settings.measure, backbone, draws=settings.draws, seed=settings.seed)
    sizes = {name: f"{len(task.y)} samples, {int(task.y.max()) + 1} classes" for name, task in tasks.items()}
    counts = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    print(f"{counts}; seen through {type(backbone).__name__}")
    for measure, matrix in found.items():
        print(f"\n{MEASURES[measure].title}\n{_text(matrix, list(tasks))}")
    folder = Path(settings.output).expanduser() if settings.output else _new_folder(Path("lightning_logs"))
    _write(folder, found, list(tasks))
    print(f"\n{short_path(folder / 'similarity.csv')} and similarity.png")


def _new_folder(root: Path) -> Path:
    return root / f"version_{claimed_version(root)}"


def _chosen(name: str, settings: Namespace) -> Labelled:
    """Some classes of the training part of a data set and some of their samples, the same for a seed."""
    source = _source(name)
    make = np.random.default_rng(settings.seed)
    classes = make.permutation(np.flatnonzero(source.sizes))[: settings.classes]
    if len(classes) < 2:
        raise UserError(f"'{name}' has fewer than two classes, but similarity needs at least two in each data set.")
    rows = make.permutation(np.flatnonzero(np.isin(source.labels, classes)))
    first = [rows[source.labels[rows] == one][0] for one in classes]  # no class is lost
    rows = np.array(list(dict.fromkeys([*first, *rows]))[: max(settings.samples, len(classes))])
    x = read_samples(source, torch.from_numpy(rows), torch.device("cpu"))
    if not isinstance(x, Tensor):
        raise UserError(f"'{name}' has texts, but similarity compares images or rows of numbers.")
    return Labelled(x, torch.from_numpy(np.unique(source.labels[rows], return_inverse=True)[1]))


def _source(name: str) -> Source:
    """The training samples of a path or of a collection by its name."""
    kind = getattr(collections, name, None) if name in collections.__all__ else None
    try:
        named = isinstance(kind, type) and issubclass(kind, Collection)
        collection = kind() if kind is not None and named else collections.open_path(name)
    except TypeError as error:
        raise UserError(f"--data: {name} needs arguments, such as a folder: give the path of the data.") from error
    parts = collection.opened()
    source = parts["all"] if "all" in parts else parts["train"]
    if not isinstance(source, Source) or not source.is_labelled:
        raise UserError(f"'{name}' has no classes, but similarity compares tasks by their classes.")
    return encoded(source, collection.encoder(source))


def _text(matrix: Tensor, names: list[str]) -> str:
    """A matrix as aligned text."""
    rows = [[name, *(f"{value:.4g}" for value in row)] for name, row in zip(names, matrix.tolist(), strict=True)]
    cells = [["", *names], *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names) + 1)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _write(folder: Path, found: Mapping[str, Tensor], names: list[str]) -> None:
    from PIL import Image

    from metatransfer.drawing.episodes import to_pixels
    from metatransfer.drawing.matrices import distances_figure

    rows: list[list[object]] = [["measure", "from", "to", "distance"]]
    for measure, matrix in found.items():
        for name, values in zip(names, matrix.tolist(), strict=True):
            rows += [[measure, name, other, value] for other, value in zip(names, values, strict=True)]
    write_atomically(folder / "similarity.csv", csv_text(rows))
    figure = distances_figure({MEASURES[measure].title: matrix for measure, matrix in found.items()}, names)
    with atomic_file(folder / "similarity.png") as draft:
        Image.fromarray(to_pixels(figure)).save(draft, format="png", optimize=True)
