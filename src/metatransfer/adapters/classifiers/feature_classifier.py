"""What classifiers of features share: fitted at once, as scikit-learn's are, their state nothing but tensors."""

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
    """Tells classes by features.

    What :meth:`fit` learns are tensors in ``self.learned``, so that a checkpoint holds them.

    Attributes:
        learned: by name; empty before the fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learned: dict[str, Tensor] = {}

    @abstractmethod
    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Learns.

        Args:
            train: what to learn from; every class has a sample.
            num_classes: number of classes.
            val: what to choose by, for those that choose.

        Returns:
            Itself.
        """

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: ``(N, E)`` features.

        Returns:
            ``(N, C)``.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Logits of features.

        Raises:
            UserError: before the fit, or features of another size.
        """
        if not self.learned:
            raise UserError(
                f"{type(self).__name__} has learned nothing yet: fit it first, or give --ckpt_path of a fit."
            )
        if x.dim() != 2 or not x.is_floating_point():
            raise UserError(f"features must be floats of shape (N, E), but are {x.dtype} of shape {tuple(x.shape)}.")
        self.learned = {name: value.to(x.device) for name, value in self.learned.items()}
        with torch.autocast(x.device.type, enabled=False):  # what was learned was learned in float32
            return self.scores(x.to(torch.promote_types(x.dtype, torch.float32)))

    def check_labelled(
        self, train: Labelled, num_classes: int, val: Labelled | None = None
    ) -> tuple[Labelled, Labelled | None]:
        """Refuses what cannot be learned from; :meth:`fit` begins with it.

        Args:
            train: what to learn from.
            num_classes: number of classes.
            val: what to choose by.

        Returns:
            Both, their features in float32 or wider.

        Raises:
            UserError: no samples, shapes or labels that do not fit, features that are not finite, or a class without
                training samples.
        """
        name, checked = type(self).__name__, []
        for where, part in (("training", train), ("validation", val)):
            if part is None:
                continue
            x, y = part
            if x.dim() != 2 or not x.is_floating_point() or y.dtype != torch.int64 or y.shape != x.shape[:1]:
                raise UserError(
                    f"{name} needs {where} features (N, E) of floats and labels (N,) of int64, but got {x.dtype} of "
                    f"shape {tuple(x.shape)} and {y.dtype} of shape {tuple(y.shape)}."
                )
            if not x.numel():
                raise UserError(f"{name} needs {where} features, but got none: shape {tuple(x.shape)}.")
            if x.shape[1] != train.x.shape[1]:
                raise UserError(
                    f"{name} got {train.x.shape[1]} training features of a sample, but {x.shape[1]} of validation: "
                    "take both from the same network."
                )
            if int(y.min()) < 0 or int(y.max()) >= num_classes:
                raise UserError(
                    f"{name} got {where} labels from {int(y.min())} to {int(y.max())}, but num_classes={num_classes} "
                    f"takes 0 to {num_classes - 1}."
                )
            if not torch.isfinite(x).all():
                raise UserError(f"{name} got {where} features that are NaN or infinite: look at samples and weights.")
            checked.append(Labelled(x.to(torch.promote_types(x.dtype, torch.float32)), y))
        missing = (torch.bincount(train.y, minlength=num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(f"{name} got no training sample of class {missing[0]}: every class needs one.")
        return checked[0], checked[1] if val is not None else None

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class ``(N,)`` of features ``(N, E)``."""
        return self(x).argmax(-1)  # type: ignore[no-any-return]

    def protocol(self) -> str:
        """The classifier and its arguments."""
        arguments = plain_arguments(self.__dict__.get("_init_arguments", {}))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def fitting(known: Tensor, x: Tensor) -> Tensor:
    """What was learned, as wide as the features.

    Raises:
        UserError: features of another size.
    """
    if x.shape[1] != known.shape[1]:
        raise UserError(
            f"the classifier was fitted to features of size {known.shape[1]}, but gets {x.shape[1]}: give it those of "
            "the same network, or fit it anew."
        )
    return known.to(x.dtype)


def linear_scores(head: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of a linear layer on standardised features: folded into the layer, a large mean would cost digits."""
    weight = fitting(head["weight"], x)
    mean, deviation, bias = (head[name].to(x.dtype) for name in ("mean", "deviation", "bias"))
    return F.linear((x - mean) / deviation, weight, bias)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; a constant feature is left as it is."""
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
