"""The task of a few-shot prediction, from folders."""

from pathlib import Path

import torch
from torch import Tensor

from metatransfer.batches import PredictionTask
from metatransfer.checks import check_folder
from metatransfer.data.sources import Collection, Source, read_samples
from metatransfer.errors import UserError


def prediction_task(support: str, query: str, collection: Collection) -> PredictionTask:
    """The task of labelling the files of one folder by the examples in another."""
    for what, path in (("support folder", support), ("query folder", query)):
        if not Path(path).expanduser().exists():
            check_folder(path, what)
    examples, names = collection.unlabelled(support)
    support_x = _samples(examples, "support")
    labels = [name.partition("/")[0] if "/" in name else "" for name in names]
    folders = [entry.name for entry in Path(support).iterdir() if entry.is_dir()] if Path(support).is_dir() else []
    empty = [name for name in folders if name not in labels and not name.startswith(".")]
    if "" in labels or len(set(labels)) < 2 or empty:
        raise UserError(
            f"support folder '{support}' must contain one folder of example images per label (<label>/<image>), at "
            f"least two, and nothing else, but has {_described(names, labels, empty)}."
        )
    queries, files = collection.unlabelled(query)
    return PredictionTask(support_x, tuple(labels), _samples(queries, "query"), files)


def _described(names: tuple[str, ...], labels: list[str], empty: list[str]) -> str:
    if "" in labels:
        return f"'{names[labels.index('')]}' outside of such a folder"
    return f"the folder '{empty[0]}' without images" if empty else f"{len(set(labels))}"


def _samples(source: Source, what: str) -> Tensor:
    read = read_samples(source, torch.arange(len(source)), torch.device("cpu"))
    if not isinstance(read, Tensor):
        raise UserError(f"{what}: {source.name} holds texts, which cannot be labelled by examples: give images.")
    return read
