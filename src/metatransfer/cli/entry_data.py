"""The data section of an entry: the user's data under one protocol, and the method's own way to be trained on them."""

from collections.abc import Mapping
from typing import Any

from metatransfer.cli.entries import Candidate, Kind, Situation

_SHAPE = {"num_ways": 5, "num_shots": 1, "num_queries": 15}
_COUNTS = {"val": 200, "test": 600}
# of a method's own configuration, by situation; anything else is the same for all
_OWN: dict[Kind, tuple[str, ...]] = {
    "new classes": ("task", "num_workers"),
    "few labels": ("batch_size", "eval_batch_size", "balance", "num_workers"),
    "domains": ("batch_size", "target_batch_size", "eval_batch_size", "standardize", "num_workers"),
}
_SERVERS: dict[Kind, str] = {
    "new classes": "EpisodicDataModule",
    "few labels": "LabelledDataModule",
    "domains": "DomainDataModule",
}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections, in which the second has precedence."""
    found = dict(first)
    for name, value in second.items():
        old = found.get(name)
        found[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found


def data_section(candidate: Candidate, situation: Situation, data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The data section of an entry for one seed.

    The user's options are the same for all entries. Of the entry's configuration, it keeps what concerns the training
    only: sizes of batches and training tasks, and augmentation. The test is the same for all seeds: test sets that
    overlap are not independent (Dietterich, 1998, https://doi.org/10.1162/089976698300017197). The seed chooses the
    training tasks, or of fixed classes the labelled samples and their order.
    """
    kind = situation.kind
    section = dict(candidate.config.get("data") or {})
    arguments = dict(section.get("init_args") or {})
    inner = arguments.get("episodes")
    if kind == "new classes" and isinstance(inner, Mapping) and "class_path" in inner:  # wrapped episodes
        own = _served(kind, dict(inner.get("init_args") or {}), data, seed)
        return {**section, "init_args": {**arguments, "episodes": {**inner, "init_args": own}}}
    usable = section.get("class_path", "").rpartition(".")[2] == _SERVERS[kind]
    served = _served(kind, arguments if usable else {}, data, seed)
    return {"class_path": _SERVERS[kind], "init_args": served}


def _served(kind: Kind, own: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    kept = {name: own[name] for name in _OWN[kind] if name in own}
    augmentation = (own.get("processing") or {}).get("augmentation")
    if augmentation is not None and kind != "domains":
        kept["processing"] = {"augmentation": augmentation}
    if kind == "domains":  # divided by their own seeds
        return merged(kept, data)
    if kind == "few labels":
        return merged(merged(kept, {"seed": seed, "division": {"seed": 0}}), data)
    counts = {name: value for name, value in (own.get("episodes") or {}).items() if name in ("train", "per_batch")}
    shape = {name: (data.get("task") or {}).get(name, value) for name, value in _SHAPE.items()}
    protocol = {"eval_task": shape, "episodes": {**_COUNTS, **counts, "train_seed": seed}, "seed": 0}
    return merged(merged(kept, protocol), data)


def ways_of(data: Mapping[str, Any]) -> int:
    """The classes of a test episode."""
    ways = {**_SHAPE, **(data.get("task") or {}), **(data.get("eval_task") or {})}["num_ways"]
    return int(ways)
