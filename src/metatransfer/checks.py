"""Validators of batches and user input: the only place that words errors about shapes, labels and files."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import Episode, LabelledBatch
from metatransfer.errors import UserError


def check_positive(**values: float | None) -> None:
    """Refuses numbers that are not above 0; ``None`` passes.

    Args:
        values: the numbers by their argument names.

    Raises:
        UserError: the first that is 0, negative or not finite.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be a number above 0, but is {value}.")


def check_not_negative(**values: float | None) -> None:
    """Refuses numbers below 0; ``None`` passes.

    Args:
        values: the numbers by their argument names.

    Raises:
        UserError: the first that is negative or not finite.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"{name} must be 0 or more, but is {value}.")


def check_seed(**values: float) -> None:
    """Refuses seeds that the generators do not take.

    Args:
        values: the seeds by their argument names.

    Raises:
        UserError: the first outside 0 to 2**32 - 1, or not a whole number.
    """
    for name, value in values.items():
        if not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"{name} must be a whole number from 0 to {2**32 - 1}, but is {value}.")


def check_fraction(**values: float) -> None:
    """Refuses numbers outside [0, 1).

    Args:
        values: the numbers by their argument names.

    Raises:
        UserError: the first that lies outside.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} must be a fraction from 0 to below 1, but is {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuses a word that is not among the known ones.

    Args:
        name: the argument.
        value: what came.
        choices: what is known.

    Raises:
        UserError: with the nearest known word.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{name} must be one of {', '.join(choices)}, but is '{value}'{did_you_mean(str(value), choices)}"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``". Did you mean X?"`` for the known word nearest to ``word``, ``"."`` where none is near.

    Args:
        word: what was typed.
        known: the words that exist.

    Returns:
        The end of a sentence.
    """
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f". Did you mean {lower[near[0]]}?" if near else "."


def check_monitor(name: str, monitor: str, logged: Iterable[str]) -> None:
    """Refuses to wait for a metric that nobody logs.

    Args:
        name: what waits for it.
        monitor: the metric.
        logged: the metrics that there are.

    Raises:
        UserError: it is not among them.
    """
    known = sorted(logged)
    if monitor not in known:
        raise UserError(
            f"{name} '{monitor}' is not logged by this run{did_you_mean(monitor, known)} Known: "
            f"{', '.join(known) or 'none'}."
        )


def check_episode(episode: Episode, *, num_outputs: int | None = None, where: str = "the episode") -> None:
    """Refuses an episode whose tensors do not fit each other, before it reaches a network.

    Args:
        episode: what a data module served or a user built.
        num_outputs: size of the method's output layer, where it has a fixed one.
        where: how to call the episode in the sentence.

    Raises:
        UserError: with the offending shapes or labels.
    """
    shapes = {
        name: tuple((value if isinstance(value, Tensor) else value.ids).shape)
        for name, value in episode._asdict().items()
        if value is not None
    }
    if min(len(shape) for shape in shapes.values()) < 2:
        raise UserError(f"{where} needs a leading task axis on all its tensors, e.g. (T, S, *shape); got {shapes}.")
    if len({shape[0] for shape in shapes.values()}) != 1:
        raise UserError(f"{where} must have the same number of tasks T in all its tensors; got {shapes}.")
    if shapes["support_x"][0] == 0:
        raise UserError(f"{where} has no task: its leading axis must be 1 or more; got {shapes}.")
    for part in ("support", "query"):
        if shapes[f"{part}_x"][1] != shapes[f"{part}_y"][1]:
            raise UserError(f"{where} must have as many {part} labels as {part} samples in every task; got {shapes}.")
    if len({shape[2:] for name, shape in shapes.items() if name.endswith("_x")}) != 1:
        raise UserError(f"{where} must have support and query samples of one shape; got {shapes}.")
    for part in ("support", "query"):
        if shapes[f"{part}_x"][1] == 0:
            raise UserError(f"{where} has no {part} samples; got {shapes}.")
    kinds = {_kind(episode.support_y), _kind(episode.query_y)}
    if kinds == {"labels"}:
        _check_labels(episode, num_outputs, where)
    elif kinds == {"targets"}:
        _check_targets(episode, num_outputs, where)
    else:
        raise UserError(
            f"{where} needs int64 labels in support_y and query_y, or float targets in both; got "
            f"{episode.support_y.dtype} and {episode.query_y.dtype}."
        )


def check_batch_kind(
    batch: object,
    kind: type,
    method: str,
    remedy: str = "wrap it, data: {class_path: ClassBatches, init_args: {episodes: ...}}",
) -> None:
    """Refuses labelled batches where a method takes episodes, and the other way round.

    Args:
        batch: what a loader served; a pair of tensors ``(x, y)`` is a labelled batch too.
        kind: ``Episode`` or ``LabelledBatch``.
        method: who takes it, e.g. ``"MAMLModule learns from"``.
        remedy: what to do where labelled batches were expected.

    Raises:
        UserError: with what to do to the data module.
    """
    parts = batch if isinstance(batch, list | tuple) else ()
    pair = isinstance(batch, LabelledBatch) or (
        len(parts) in (2, 3) and all(isinstance(part, Tensor) for part in parts[:2])
    )
    if kind is LabelledBatch and not pair:
        raise UserError(
            f"{method} labelled batches of all training classes, but the data module serves {_served(batch)}: {remedy}."
        )
    tasks = [batch] if isinstance(batch, Episode) else parts
    if kind is not LabelledBatch and not (tasks and all(isinstance(task, Episode) for task in tasks)):
        served = "labelled batches" if pair else _served(batch)
        raise UserError(
            f"{method} episodes, but the data module serves {served}: give it an episodic data module, such "
            "as the one inside ClassBatches."
        )


def _served(batch: object) -> str:
    first = batch[0] if isinstance(batch, list | tuple) and not isinstance(batch, Episode) and batch else batch
    return "episodes" if isinstance(first, Episode) else f"a {type(batch).__name__}"


def check_labelled_batch(batch: LabelledBatch, num_classes: int) -> None:
    """Refuses a batch whose samples and labels do not fit each other or the output layer.

    Args:
        batch: what a data module served.
        num_classes: size of the output layer.

    Raises:
        UserError: with the offending shapes or labels.
    """
    x = batch.x if isinstance(batch.x, Tensor) else batch.x.ids
    shapes = tuple(x.shape), tuple(batch.y.shape)
    if len(shapes[0]) < 2 or len(shapes[1]) != 1 or shapes[0][0] != shapes[1][0] or not shapes[0][0]:
        raise UserError(
            f"the training batch must hold samples (N, *shape) and one label for each, (N,); got {shapes[0]} and "
            f"{shapes[1]}."
        )
    if isinstance(batch.x, Tensor):
        check_float_samples(batch.x, "the training batch's x")
    if batch.y.dtype != torch.int64:
        raise UserError(f"the training batch must have int64 labels, but has {batch.y.dtype}: it needs classes.")
    low, high = int(batch.y.min()), int(batch.y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"the training batch has labels from {low} to {high}, but the method was built with num_classes="
            f"{num_classes} and takes 0 to {num_classes - 1}: set num_classes to the number of training classes."
        )


def _kind(y: Tensor) -> str:
    return "targets" if y.is_floating_point() else "labels" if y.dtype == torch.int64 else str(y.dtype)


def _check_targets(episode: Episode, num_outputs: int | None, where: str) -> None:
    sizes = {tuple(y.shape[2:]) for y in (episode.support_y, episode.query_y)}
    if len(sizes) != 1 or len(next(iter(sizes))) != 1:
        raise UserError(
            f"{where} needs targets of shape (T, S, D) and (T, Q, D); got {tuple(episode.support_y.shape)} and "
            f"{tuple(episode.query_y.shape)}."
        )
    size = episode.support_y.shape[-1]
    if num_outputs is not None and size != num_outputs:
        raise UserError(
            f"{where} has targets of size {size}, but the method was built with num_outputs={num_outputs}: set "
            "num_outputs to the size of the targets."
        )
    if not (torch.isfinite(episode.support_y).all() and torch.isfinite(episode.query_y).all()):
        raise UserError(f"{where} has targets that are NaN or infinite: clean the data.")


def _check_labels(episode: Episode, num_outputs: int | None, where: str) -> None:
    if episode.support_y.dim() != 2 or episode.query_y.dim() != 2:
        raise UserError(
            f"{where} needs labels of shape (T, S) and (T, Q); got {tuple(episode.support_y.shape)} and "
            f"{tuple(episode.query_y.shape)}."
        )
    for part, labels in (("", episode.support_y), ("query ", episode.query_y)):
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise UserError(f"{where} has {part}labels from {low} to {high}: number the classes of an episode from 0.")
        if num_outputs is None and high > int(episode.support_y.max()):
            raise UserError(
                f"{where} has {part}labels from {low} to {high}, but no support sample above "
                f"{int(episode.support_y.max())}: every class needs one."
            )
        if num_outputs is not None and high >= num_outputs:
            raise UserError(
                f"{where} has {part}labels from {low} to {high}, but the method was built with "
                f"num_outputs={num_outputs} and takes 0 to {num_outputs - 1}: set num_outputs to the number of ways."
            )


def check_episode_shape(
    samples_per_class: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    where: str,
    prefix: str = "",
) -> None:
    """Refuses episodes that cannot be drawn from a set of classes.

    Args:
        samples_per_class: number of samples of each class.
        class_names: their names.
        num_ways: classes of an episode.
        num_shots: support samples of each class.
        num_queries: query samples of each class.
        where: the data set and split, to be named.
        prefix: what the arguments of this split start with (``"eval_"``).

    Raises:
        UserError: fewer than two ways, more ways than classes, or more shots and queries than a class has samples (it
            is named).
    """
    check_positive(num_ways=num_ways, num_shots=num_shots, num_queries=num_queries)
    if num_ways < 2:
        raise UserError(
            f"{where} has {num_ways}-way episodes, but with a single class every answer is right: raise "
            f"{prefix}num_ways to 2 or more."
        )
    if num_ways > len(samples_per_class):
        raise UserError(
            f"{where} has {len(samples_per_class)} classes, but {num_ways}-way episodes need at least {num_ways}: "
            f"lower {prefix}num_ways."
        )
    smallest = int(np.argmin(samples_per_class))
    if num_shots + num_queries > samples_per_class[smallest]:
        raise UserError(
            f"{where}: class '{class_names[smallest]}' has {samples_per_class[smallest]} samples, but {num_shots} "
            f"shots + {num_queries} queries need {num_shots + num_queries}: lower {prefix}num_shots or "
            f"{prefix}num_queries."
        )


def check_float_samples(x: Tensor, name: str) -> None:
    """Refuses samples that are not floating point: 0 to 255 is not what networks were trained on.

    Args:
        x: samples.
        name: of the argument.

    Raises:
        UserError: another type, e.g. uint8.
    """
    if not x.is_floating_point():
        raise UserError(f"{name} must be floating point, images in [0, 1], but is {x.dtype}: convert it (x / 255).")


def check_support(support_x: Tensor, labels: Sized) -> None:
    """Refuses a support set that a method cannot be adapted to.

    Args:
        support_x: ``(S, *shape)`` float.
        labels: ``S`` labels.

    Raises:
        UserError: empty, of different lengths, without a sample axis, not floating point, not finite, or more than one
            label for a sample.
    """
    _check_one_label_each(labels)
    if support_x.dim() < 2 or len(support_x) == 0:
        raise UserError(
            f"support_x must hold at least one sample along its first axis, (S, *shape); got {tuple(support_x.shape)}."
        )
    if len(support_x) != len(labels):
        raise UserError(f"support_x has {len(support_x)} samples, but support_y has {len(labels)} labels.")
    check_float_samples(support_x, "support_x")
    if not torch.isfinite(support_x).all():
        raise UserError("support_x contains NaN or infinity: clean the samples before adapting to them.")


def _check_one_label_each(labels: Any) -> None:  # noqa: ANN401
    if not hasattr(labels, "__len__") or (isinstance(labels, Tensor | np.ndarray) and labels.ndim == 0):
        raise UserError(f"support_y must hold one label for each sample, but is {labels!s:.40}.")
    if not isinstance(labels, Tensor | np.ndarray):
        nested = [label for label in list(labels) if isinstance(label, list) or np.prod(getattr(label, "shape", 1)) > 1]
        if nested:
            raise UserError(
                f"support_y must hold one label for each sample, but holds a {type(nested[0]).__name__} of "
                f"{len(nested[0])}: give class indices or names, or a tensor (S, D) of float targets to regress."
            )
        return
    shape = tuple(labels.shape)
    floating = labels.dtype.is_floating_point if isinstance(labels, Tensor) else labels.dtype.kind == "f"
    if (
        len(shape) == 2
        and min(shape) > 1
        and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
    ):
        raise UserError(
            f"support_y of shape {shape} is one-hot, but must hold one class index for each sample: give "
            "support_y.argmax(-1)."
        )
    if len(shape) > 1 and not floating:
        advice = "take its only column, support_y[:, 0]" if shape[1:] == (1,) else "give one label for each sample"
        raise UserError(f"support_y must have shape (S,), but has {shape}: {advice}.")


def check_state_dict(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], what: str) -> None:
    """Refuses weights of another network before any of them is copied.

    Args:
        own: names and shapes that are expected.
        loaded: names and shapes that came.
        what: the class that is to take them.

    Raises:
        UserError: with the first few keys that are missing, unknown or of another shape.
    """
    missing = [key for key in own if key not in loaded]
    unknown = [key for key in loaded if key not in own]
    shapes = [
        f"{key} {tuple(loaded[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in loaded and loaded[key].shape != own[key].shape
    ]
    problems = [
        f"{len(found)} {title} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for title, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise UserError(
            f"the checkpoint's weights do not fit this {what}: {'; '.join(problems)}. Give the model the arguments "
            "that it was trained with (they stand in the config.yaml of its run)."
        )


def check_file(path: str | Path, what: str, remedy: str = "") -> Path:
    """The path of a file that must exist and be readable.

    Args:
        path: the file.
        what: what it is, to be named.
        remedy: what to do where it is missing and no file has a similar name.

    Returns:
        The path.

    Raises:
        UserError: it does not exist (with its nearest neighbour), is a folder, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        advice = did_you_mean(path.name, siblings)
        raise UserError(f"{what} '{path}' does not exist{f': {remedy}.' if remedy and advice == '.' else advice}")
    if not path.is_file():
        raise UserError(f"{what} '{path}' is a folder, but must be a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} '{path}' cannot be read: check its permissions.")
    return path


def check_folder(path: str | Path, what: str) -> Path:
    """The path of a folder that must exist.

    Args:
        path: the folder.
        what: what it is, to be named.

    Returns:
        The path.

    Raises:
        UserError: it does not exist (with its nearest neighbour) or is a file.
    """
    path = Path(path)
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        problem = "is a file, but must be a folder." if path.exists() else "does not exist"
        raise UserError(f"{what} '{path}' {problem}{'' if path.exists() else did_you_mean(path.name, siblings)}")
    return path


def check_writable(path: str | Path, what: str) -> Path:
    """The path of a folder that can be written to, or made; tried out, as permissions alone do not tell.

    Args:
        path: the folder; it need not exist, and is not made.
        what: what it is for, to be named.

    Returns:
        The path.

    Raises:
        UserError: it, or the first of its parents that exists, is not a folder or not writable.
    """
    path = Path(path)
    try:
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{what} '{path}' cannot be made: '{existing}' is a file, not a folder.")
        # under a name of its own: several runs may try the same folder at once
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=existing) as trial:
            folder = Path(trial, path.absolute().relative_to(existing))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_bytes(b"0")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{what} '{path}' cannot be written ({reason}): choose another folder.") from error
    return path
