"""What of a model follows from its data, where the configuration leaves it open."""

from __future__ import annotations

import functools
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule

from metatransfer.cli.messages import import_class


def follow_data(model: Namespace, data: Namespace) -> None:
    """Fills in ``num_outputs``, ``num_classes`` and the backbone's ``in_channels``, ``image_size`` or ``in_shape``.

    Only what is null is filled in; values that are given stay, whatever the data says.

    Args:
        model: the section ``model``, with ``class_path``; changed in place.
        data: the section ``data``.
    """
    arguments = model.get("init_args")
    if not isinstance(arguments, Namespace):
        return
    if "num_outputs" in arguments and arguments.num_outputs is None:
        ways = _ways(data)
        arguments.num_outputs = max(1, ways) if ways is not None else None  # the data refuses 0 in its own words
    ask = functools.cache(lambda: _built(data))
    if "num_classes" in arguments and arguments.num_classes is None and _has(data, "num_classes"):
        arguments.num_classes = ask().num_classes
    backbone = arguments.get("backbone")
    network = backbone.get("init_args") if isinstance(backbone, Namespace) else None
    if not isinstance(network, Namespace):
        return
    if "vocabulary_size" in network and network.vocabulary_size is None and _has(data, "vocabulary_size"):
        network.vocabulary_size = ask().vocabulary_size
    wanted = [name for name in ("in_channels", "image_size", "in_shape") if name in network and network[name] is None]
    if not wanted or not _has(data, "sample_shape"):
        return
    shape: tuple[int, ...] = ask().sample_shape()
    image = len(shape) == 3
    if "in_shape" in wanted:
        network["in_shape"] = list(shape)
    if "in_channels" in wanted and image:
        network["in_channels"] = shape[0]
    if "image_size" in wanted and image and shape[1] == shape[2]:
        network["image_size"] = shape[1]


def _ways(data: Namespace) -> int | None:
    """The outputs that a data module's tasks ask for: targets, ways, or those of the source that it trains on."""
    arguments = data.get("init_args") or {}
    trained_on = arguments.get("train") or arguments.get("episodes")
    if isinstance(trained_on, Namespace) and "class_path" in trained_on:
        return _ways(trained_on)
    ways: int | None = getattr(import_class(data.class_path), "num_targets", None) or arguments.get("num_ways")
    return ways


def _has(data: Namespace, name: str) -> bool:
    return hasattr(import_class(data.class_path), name)


def _built(data: Namespace) -> Any:  # noqa: ANN401
    """The data module itself, to be asked; it is built a second time for the run."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    settings = Namespace(data=data)  # type: ignore[no-untyped-call]
    return parser.instantiate(settings).data
