"""The base class of classifiers that are fitted to features; their state consists of tensors only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.arguments import RemembersArguments, plain_arguments
from metatransfer.errors import UserError


class Labelled(NamedTuple):
    """Features with their labels.

    Attributes:
        x: ``(N, E)`` float.
        y: ``(N,)`` int64 in ``0 .. C - 1``.
    """

    x: Tensor
    y: Tensor


class FeatureClassifier(RemembersArguments, torch.nn.Module, ABC):
    """A classifier of features with the interface of scikit-learn.

    :meth:`fit` stores what it learns as tensors in ``self.learned``, which checkpoints save.

    Attributes:
        learned: tensors by name; empty before the fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learned: dict[str, Tensor] = {}

    @abstractmethod
    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Fits the classifier.

        Args:
            train: training samples; every class needs at least one.
            num_classes: number of classes.
            val: validation samples, for classifiers that select a hyperparameter.

        Returns:
            The fitted classifier.
        """

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, E)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, E)``.

        Raises:
            UserError: the classifier is not fitted, or the features have another size.
        """
        if not self.learned:
            name = type(self).__name__
            raise UserError(f"{name} has learned nothing yet: fit it first, or give --ckpt_path of a fit.")
        if x.dim() != 2 or not x.is_floating_point():
            raise UserError(f"features must be floats of shape (N, E), but are {x.dtype} of shape {tuple(x.shape)}.")
        self.learned = {name: value.to(x.device) for name, value in self.learned.items()}
        with torch.autocast(x.device.type, enabled=False):  # it was fitted in float32
            return self.scores(x.to(torch.promote_types(x.dtype, torch.float32)))

    def check_labelled(
        self, train: Labelled, num_classes: int, val: Labelled | None = None
    ) -> tuple[Labelled, Labelled | None]:
        """Checks the samples at the beginning of :meth:`fit`.

        Args:
            train: training samples.
            num_classes: number of classes.
            val: validation samples.

        Returns:
            Both, with features in float32 or float64.

        Raises:
            UserError: there are no samples, shapes or labels do not fit, features are not finite, or a class has no
                training sample.
        """
        name = type(self).__name__
        checked = _checked(train, num_classes, f"{name} needs training features", f"{name} got training")
        missing = (torch.bincount(train.y, minlength=num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(f"{name} got no training sample of class {missing[0]}: every class needs one.")
        if val is None:
            return checked, None
        if val.x.dim() == 2 and val.x.numel() and val.x.shape[1] != train.x.shape[1]:
            raise UserError(
                f"{name} got {train.x.shape[1]} training features of a sample, but {val.x.shape[1]} of validation: "
                "compute both with the same network."
            )
        return checked, _checked(val, num_classes, f"{name} needs validation features", f"{name} got validation")

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class ``(N,)`` of features ``(N, E)``."""
        return self(x).argmax(-1)  # type: ignore[no-any-return]

    def protocol(self) -> str:
        """The classifier and its arguments."""
        arguments = plain_arguments(self.__dict__.get("_init_arguments", {}))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _checked(samples: Labelled, num_classes: int, needs: str, got: str) -> Labelled:
    x, y = samples
    if x.dim() != 2 or not x.is_floating_point() or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise UserError(
            f"{needs} (N, E) of floats and labels (N,) of int64, but got {x.dtype} of shape {tuple(x.shape)} and "
            f"{y.dtype} of shape {tuple(y.shape)}."
        )
    if not x.numel():
        raise UserError(f"{needs}, but got none: shape {tuple(x.shape)}.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{got} labels from {low} to {high}, but num_classes={num_classes} takes 0 to {num_classes - 1}."
        )
    if not torch.isfinite(x).all():
        raise UserError(f"{got} features that are NaN or infinite: check the samples and the network's weights.")
    return Labelled(x.to(torch.promote_types(x.dtype, torch.float32)), y)


def fitting(known: Tensor, x: Tensor) -> Tensor:
    """A learned tensor in the precision of the features.

    Raises:
        UserError: the features have another size.
    """
    if x.shape[1] != known.shape[1]:
        raise UserError(
            f"the classifier was fitted to features of size {known.shape[1]}, but gets {x.shape[1]}: use features of "
            "the same network, or fit it again."
        )
    return known.to(x.dtype)


def linear_scores(head: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of a linear layer on standardised features."""
    weight = fitting(head["weight"], x)
    mean, deviation, bias = (head[name].to(x.dtype) for name in ("mean", "deviation", "bias"))
    # mean and deviation are not folded into the layer, because a large mean would cost precision
    return F.linear((x - mean) / deviation, weight, bias)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; 1 as the deviation of a constant feature."""
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
