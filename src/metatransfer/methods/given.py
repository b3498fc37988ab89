"""Support sets and queries as a caller gives them: as tensors on the module's device, with labels of any kind."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metatransfer.batches import Inputs, Tokens, map_inputs
from metatransfer.checks import check_float_samples, check_support
from metatransfer.errors import UserError

if TYPE_CHECKING:
    from metatransfer.methods.base import MethodModule

Labels = Tensor | np.ndarray | Sequence[Hashable]
Samples = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]


def support_set(module: "MethodModule", support_x: Samples | Inputs, support_y: Labels) -> tuple[Inputs, Labels]:
    """A support set, checked and on the module's device."""
    given = support_x if isinstance(support_x, Tokens) else as_samples(support_x, "support_x")
    check_support(given, support_y)
    samples = as_inputs(module, given, "support_x")
    module.check_samples(samples)
    return samples, plain_labels(support_y)


def as_inputs(module: "MethodModule", x: Samples | Inputs, name: str) -> Inputs:
    """Samples as floats in the precision of the network, or texts, on its device."""
    if isinstance(x, Tokens):
        return map_inputs(lambda part: part.to(module.device), x)
    samples = as_samples(x, name)
    check_float_samples(samples, name)
    return samples.to(module.device, floating_dtype(module))


def check_dense(x: object, name: str) -> None:
    """Raises an error for a sparse matrix of torch or scipy."""
    if hasattr(x, "tocoo") or (isinstance(x, Tensor) and x.layout != torch.strided):
        raise UserError(
            f"{name} is a sparse matrix, which networks do not take: make it dense, x.to_dense() or x.toarray(); only "
            "data modules serve sparse matrices, through Arrays."
        )


def as_samples(x: Samples, name: str) -> Tensor:
    """Samples as one tensor."""
    check_dense(x, name)
    if isinstance(x, Tensor):
        return x
    if isinstance(x, list | tuple) and x and all(isinstance(sample, Tensor | np.ndarray) for sample in x):
        samples = [as_samples(sample, name) for sample in x]
        shapes = list(dict.fromkeys(tuple(sample.shape) for sample in samples))
        if len(shapes) > 1:
            raise UserError(
                f"{name} holds samples of different shapes, {shapes[0]} and {shapes[1]}: convert them to one shape."
            )
        return torch.stack(samples)
    first = x[0] if isinstance(x, list | tuple) and x else x
    if isinstance(first, Image.Image):
        raise UserError(
            f"{name} holds PIL images, but must hold tensors: convert each as the training data was, for example with "
            "convert_image of the data module."
        )
    try:
        array = np.asarray(x)
        # torch takes neither negative strides nor another byte order, and warns of what it may not write to
        return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), order="C", copy=not _is_shareable(array)))
    except (TypeError, ValueError) as error:
        found = type(x).__name__ + (f" of {type(first).__name__}" if first is not x else "")
        raise UserError(
            f"{name} must be a tensor or an array (N, *shape) of numbers, or a list of samples of one shape, but is "
            f"{found}."
        ) from error


def _is_shareable(array: np.ndarray) -> bool:
    return array.flags.writeable and all(stride >= 0 for stride in array.strides)


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The floating-point type of a module's weights."""
    kinds = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(kinds, torch.float32)


def plain_labels(labels: Labels) -> Labels:
    """Labels as plain values: scalars of torch and numpy in a list are replaced by their values."""
    if isinstance(labels, Tensor | np.ndarray):
        return labels
    return [label.item() if isinstance(label, Tensor | np.generic) else label for label in labels]


def classes_of(labels: Labels) -> tuple[Any, ...]:
    """The distinct labels, sorted; empty for float labels, which are regressed."""
    if isinstance(labels, Tensor):
        return () if labels.is_floating_point() else tuple(torch.unique(labels).tolist())
    if isinstance(labels, np.ndarray):
        return () if labels.dtype.kind == "f" else tuple(np.unique(labels).tolist())
    distinct = set(labels)
    if all(isinstance(label, float) for label in distinct):
        return ()
    try:
        return tuple(sorted(distinct))
    except TypeError:
        return tuple(sorted(distinct, key=str))


def encode(labels: Labels, device: torch.device) -> Tensor:
    """Support labels as class indices, or as float targets ``(S, D)``."""
    classes = classes_of(labels)
    if not classes:
        targets = torch.as_tensor(labels, dtype=torch.float32, device=device)
        return targets.unsqueeze(-1) if targets.dim() == 1 else targets
    position = {name: index for index, name in enumerate(classes)}
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
    return torch.tensor([position[value] for value in values], device=device)
