"""Validators of episodes, labelled batches and support sets."""

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatransfer.batches import Episode, Inputs, LabelledBatch
from metatransfer.errors import UserError

__all__ = [
    "check_batch_kind", "check_episode", "check_finite", "check_float_samples", "check_labelled_batch",
    "check_support",
]  # fmt: skip
_WRAP = "wrap it, data: {class_path: ClassBatches, init_args: {episodes: ...}}"


def _ids(x: Inputs) -> Tensor:
    return x if isinstance(x, Tensor) else x.ids


def check_episode(episode: Episode, *, num_outputs: int | None = None, where: str = "the episode") -> None:
    """Raises an error if the tensors of an episode do not fit each other or ``num_outputs``; ``where`` names it."""
    given = {name: part for name, part in episode._asdict().items() if part is not None}
    shapes = {name: tuple(_ids(part).shape) for name, part in given.items()}
    if min(len(shape) for shape in shapes.values()) < 2:
        raise UserError(f"{where} needs a leading task axis on all its tensors, e.g. (T, S, *shape); got {shapes}.")
    if len({shape[0] for shape in shapes.values()}) != 1:
        raise UserError(f"{where} must have the same number of tasks T in all its tensors; got {shapes}.")
    if shapes["support_x"][0] == 0:
        raise UserError(f"{where} has no task: its leading axis must be 1 or more; got {shapes}.")
    for part in ("support", "query"):
        if shapes[f"{part}_x"][1] != shapes[f"{part}_y"][1]:
            raise UserError(f"{where} must have as many {part} labels as {part} samples in every task; got {shapes}.")
        if shapes[f"{part}_x"][1] == 0:
            raise UserError(f"{where} has no {part} samples; got {shapes}.")
    samples = {name: part for name, part in given.items() if name.endswith("_x")}
    for name, part in samples.items():
        if isinstance(part, Tensor):
            check_float_samples(part, f"{where}'s {name}")
    # the lengths of texts may differ, because each part is padded to its longest text
    if len({tuple(part.shape[2:]) if isinstance(part, Tensor) else "texts" for part in samples.values()}) != 1:
        raise UserError(f"{where} must have support and query samples of one shape; got {shapes}.")
    kinds = {_kind(episode.support_y), _kind(episode.query_y)}
    if kinds == {"labels"}:
        _check_labels(episode, num_outputs, where)
    elif kinds == {"targets"}:
        _check_targets(episode, num_outputs, where)
    else:
        raise UserError(
            f"{where} needs int64 labels in support_y and query_y, or float targets in both; got "
            f"{episode.support_y.dtype} and {episode.query_y.dtype}: convert them, for example y.long()."
        )


def _check_targets(episode: Episode, num_outputs: int | None, where: str) -> None:
    shapes = tuple(episode.support_y.shape), tuple(episode.query_y.shape)
    if len(shapes[0]) != 3 or shapes[0][2:] != shapes[1][2:]:
        raise UserError(f"{where} needs targets of shape (T, S, D) and (T, Q, D); got {shapes[0]} and {shapes[1]}.")
    size = shapes[0][-1]
    if num_outputs is not None and size != num_outputs:
        raise UserError(
            f"{where} has targets of size {size}, but the method was built with num_outputs={num_outputs}: set "
            "num_outputs to the size of the targets."
        )
    if not (torch.isfinite(episode.support_y).all() and torch.isfinite(episode.query_y).all()):
        raise UserError(f"{where} has targets that are NaN or infinite: clean the data.")


def _check_labels(episode: Episode, num_outputs: int | None, where: str) -> None:
    shapes = tuple(episode.support_y.shape), tuple(episode.query_y.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise UserError(f"{where} needs labels of shape (T, S) and (T, Q); got {shapes[0]} and {shapes[1]}.")
    for part, labels in (("", episode.support_y), ("query ", episode.query_y)):
        low, high = int(labels.min()), int(labels.max())
        given = f"{where} has {part}labels from {low} to {high}"
        if low < 0:
            raise UserError(f"{given}: number the classes of an episode from 0.")
        if num_outputs is None and high > int(episode.support_y.max()):
            most = int(episode.support_y.max())
            raise UserError(f"{given}, but no support sample above {most}: every class needs one.")
        if num_outputs is not None and high >= num_outputs:
            raise UserError(
                f"{given}, but the method was built with num_outputs={num_outputs} and takes 0 to {num_outputs - 1}: "
                "set num_outputs to the number of ways."
            )


def check_batch_kind(batch: object, kind: type, method: str, remedy: str = _WRAP) -> None:
    """Raises an error if a method gets another kind of batch; a pair of tensors is a labelled batch, too."""
    parts = batch if isinstance(batch, list | tuple) else ()
    tensors = len(parts) in (2, 3) and all(isinstance(part, Tensor) for part in parts[:2])
    pair = tensors or isinstance(batch, LabelledBatch)
    if kind is LabelledBatch and not pair:
        raise UserError(
            f"{method} labelled batches of all training classes, but the data module serves {_served(batch)}: {remedy}."
        )
    tasks = [batch] if isinstance(batch, Episode) else parts
    if kind is not LabelledBatch and not (tasks and all(isinstance(task, Episode) for task in tasks)):
        served = "labelled batches" if pair else _served(batch)
        raise UserError(
            f"{method} episodes, but the data module serves {served}: use an episodic data module, such as "
            "the one inside ClassBatches."
        )


def _served(batch: object) -> str:
    first = batch[0] if isinstance(batch, list | tuple) and not isinstance(batch, Episode) and batch else batch
    return "episodes" if isinstance(first, Episode) else f"a {type(batch).__name__}"


def check_labelled_batch(batch: LabelledBatch, num_classes: int) -> None:
    """Raises an error if the samples and labels of a batch do not fit each other or the output layer."""
    shapes = tuple(_ids(batch.x).shape), tuple(batch.y.shape)
    if len(shapes[0]) < 2 or len(shapes[1]) != 1 or shapes[0][0] != shapes[1][0] or not shapes[0][0]:
        raise UserError(
            f"the training batch must contain samples (N, *shape) and one label for each, (N,); got {shapes[0]} and "
            f"{shapes[1]}."
        )
    if isinstance(batch.x, Tensor):
        check_float_samples(batch.x, "the training batch's x")
    if batch.y.dtype != torch.int64:
        raise UserError(f"the training batch must have int64 labels, but has {batch.y.dtype}: use data with classes.")
    low, high = int(batch.y.min()), int(batch.y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"the training batch has labels from {low} to {high}, but the method was built with num_classes="
            f"{num_classes} and takes 0 to {num_classes - 1}: set num_classes to the number of training classes."
        )


def check_float_samples(x: Tensor, name: str) -> None:
    """Raises an error unless samples are floating point."""
    if not x.is_floating_point():
        advice = "divide images by 255, x / 255" if x.dtype == torch.uint8 else "convert it, x.float()"
        advice = "give its two parts, torch.view_as_real(x)" if x.is_complex() else advice
        raise UserError(f"{name} must be floating point, images in [0, 1], but is {x.dtype}: {advice}.")


def check_finite(x: Inputs, name: str, remedy: str) -> None:
    """Raises an error, from ``name`` to ``remedy``, if samples contain NaN or infinity."""
    if isinstance(x, Tensor) and not torch.isfinite(x).all():
        raise UserError(f"{name} contains NaN or infinity: {remedy}.")


def check_support(support_x: Inputs, labels: Sized) -> None:
    """Raises an error if a method cannot adapt to support samples ``(S, *shape)`` with ``S`` labels."""
    _check_one_label_each(labels)
    x = _ids(support_x)
    if x.dim() < 2 or len(x) == 0:
        raise UserError(
            f"support_x must contain at least one sample along its first axis, (S, *shape); got {tuple(x.shape)}."
        )
    if len(x) != len(labels):
        raise UserError(f"support_x has {len(x)} samples, but support_y has {len(labels)} labels.")
    if isinstance(support_x, Tensor):
        check_float_samples(support_x, "support_x")
    check_finite(support_x, "support_x", "clean the samples before adapting to them")


def _check_one_label_each(labels: Any) -> None:  # noqa: ANN401
    if not hasattr(labels, "__len__") or (isinstance(labels, Tensor | np.ndarray) and labels.ndim == 0):
        raise UserError(f"support_y must contain one label for each sample, but is {labels!s:.40}.")
    if isinstance(labels, Tensor):
        labels = (labels.float() if labels.is_floating_point() else labels).numpy(force=True)  # NumPy has no bfloat16
    if isinstance(labels, np.ndarray):
        _check_label_array(labels)
    else:
        _check_label_list(list(labels))


def _check_label_array(labels: np.ndarray) -> None:
    shape, kind = labels.shape, labels.dtype.kind
    if kind not in "biufOSU":
        raise UserError(
            f"support_y is {labels.dtype}, but must contain whole numbers or texts as labels, or real numbers as "
            "targets to regress: convert it."
        )
    binary = len(shape) == 2 and min(shape) > 1 and bool(((labels == 0) | (labels == 1)).all())
    if binary and bool((labels.sum(1) == 1).all()):
        raise UserError(
            f"support_y of shape {shape} is one-hot, but must contain one class index for each sample: use "
            "support_y.argmax(-1)."
        )
    if len(shape) > 1 and kind != "f":
        advice = "use its only column, support_y[:, 0]" if shape[1:] == (1,) else "give one label for each sample"
        raise UserError(f"support_y must have shape (S,), but has {shape}: {advice}.")
    if kind == "O":
        _check_label_list(labels.tolist())
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        if len(kinds) > 1:
            raise UserError(f"support_y mixes {' and '.join(kinds)}: give labels of one type.")
    if kind == "f" and not np.isfinite(labels).all():
        row = int((~np.isfinite(labels)).reshape(len(labels), -1).any(1).argmax())
        raise UserError(f"support_y contains NaN or infinity for sample {row}: give a class or a finite target.")


def _check_label_list(labels: list[Any]) -> None:
    for row, label in enumerate(labels):
        if isinstance(label, list | dict | set) or np.prod(getattr(label, "shape", 1)) > 1:
            raise UserError(
                f"support_y must contain one label for each sample, not a {type(label).__name__} of {len(label)}: give "
                "class indices or names, or a tensor (S, D) of float targets to regress."
            )
        if label is None or (isinstance(label, float | np.floating | Tensor) and not np.isfinite(float(label))):
            raise UserError(f"support_y contains {label} for sample {row}: give it a label, or leave the sample out.")


def _kind(y: Tensor) -> str:
    return "targets" if y.is_floating_point() else "labels" if y.dtype == torch.int64 else str(y.dtype)
