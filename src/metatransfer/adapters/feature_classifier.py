"""The base class of classifiers that are fitted to features; their state consists of tensors only."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.arguments import RemembersArguments, as_call
from metatransfer.errors import UserError


class Labelled(NamedTuple):
    """Features with their labels.

    Attributes:
        x: ``(N, E)`` float; for a linear classifier that ``takes_sparse``, also a sparse matrix of scipy or torch.
        y: ``(N,)`` int64 in ``0 .. C - 1``.
    """

    x: Tensor
    y: Tensor


class FeatureClassifier(RemembersArguments, torch.nn.Module, ABC):
    """A classifier of features with the interface of scikit-learn.

    :meth:`fit` stores what it learns as tensors in ``self.learned``, which checkpoints save.

    Attributes:
        learned: tensors by name; empty before the fit.
        calibrated: whether the softmax of the outputs is a calibrated probability.
        takes_sparse: whether features may be a sparse matrix of scipy or torch.
    """

    calibrated: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = False

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
            raise UserError(f"{name} is not fitted yet: fit it first, or give --ckpt_path of a fitted run.")
        x = self._tensor(x)
        if x.dim() != 2 or not x.is_floating_point():
            raise UserError(f"features must be floats of shape (N, E), but are {x.dtype} of shape {tuple(x.shape)}.")
        self.learned = {name: value.to(x.device) for name, value in self.learned.items()}
        with torch.autocast(x.device.type, enabled=False):  # it was fitted in float32
            return self.scores(x.to(torch.promote_types(x.dtype, torch.float32)))

    def keeping_scale(self) -> "FeatureClassifier":
        """The classifier for features whose scale has a meaning, as after a domain adapter; by default this one."""
        return self

    def check_labelled(
        self, train: Labelled, num_classes: int, val: Labelled | None = None
    ) -> tuple[Labelled, Labelled | None]:
        """Checks the samples at the beginning of :meth:`fit` and returns both, with features in float32 or float64.

        Raises:
            UserError: there are no samples, shapes or labels do not fit, features are not finite, or a class has no
                training sample.
        """
        name = type(self).__name__
        train = Labelled(self._tensor(train.x), train.y)
        checked = _checked(train, num_classes, name, "training")
        missing = (torch.bincount(train.y, minlength=num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(f"{name} got no training sample of class {missing[0]}: every class needs one.")
        if val is None:
            return checked, None
        val = Labelled(self._tensor(val.x), val.y)
        if val.x.dim() == 2 and val.x.numel() and val.x.shape[1] != train.x.shape[1]:
            raise UserError(
                f"{name} got {train.x.shape[1]} features for training samples, but {val.x.shape[1]} for validation "
                "samples: compute both with the same network."
            )
        return checked, _checked(val, num_classes, name, "validation")

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class ``(N,)`` of features ``(N, E)``."""
        return self(x).argmax(-1)  # type: ignore[no-any-return]

    def _tensor(self, x: Any) -> Tensor:  # noqa: ANN401
        """Features as a tensor; a sparse matrix of scipy or torch stays sparse."""
        if not isinstance(x, Tensor) and hasattr(x, "tocoo"):
            entries = x.tocoo()
            values = entries.data.astype(np.promote_types(entries.dtype, np.float32))  # counts are integers
            places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
            x = torch.sparse_coo_tensor(places, torch.from_numpy(values), entries.shape, check_invariants=False)
        if isinstance(x, Tensor) and x.layout != torch.strided:
            if not self.takes_sparse:
                raise UserError(
                    f"{type(self).__name__} takes dense features, but got a sparse matrix: use LinearSVM, which keeps "
                    "it sparse, or make it dense with toarray() or to_dense()."
                )
            x = x.to_sparse(layout=torch.sparse_coo).coalesce()
        return x  # type: ignore[no-any-return]

    def protocol(self) -> str:
        """The classifier and its arguments."""
        return as_call(self)


def _checked(samples: Labelled, num_classes: int, name: str, which: str) -> Labelled:
    x, y = samples
    needs = f"{name} needs {which} features"
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
            f"{name} got {which} labels from {low} to {high}, but num_classes={num_classes} takes 0 to "
            f"{num_classes - 1}."
        )
    if not torch.isfinite(x.values() if x.is_sparse else x).all():
        raise UserError(
            f"{name} got {which} features that are NaN or infinite: check the samples and the network's weights."
        )
    return Labelled(x.to(torch.promote_types(x.dtype, torch.float32)), y)


def fitting(known: Tensor, x: Tensor) -> Tensor:
    """A learned tensor in the precision of the features.

    Raises:
        UserError: the features have another size.
    """
    if x.shape[1] != known.shape[1]:
        raise UserError(
            f"the classifier was fitted to features of size {known.shape[1]}, but got size {x.shape[1]}: use "
            "features of the same network, or fit it again."
        )
    return known.to(x.dtype)


def linear_scores(head: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of a linear layer on standardised features."""
    weight = fitting(head["weight"], x)
    mean, deviation, bias = (head[name].to(x.dtype) for name in ("mean", "deviation", "bias"))
    if x.is_sparse:
        weight = weight / deviation
        outputs: Tensor = torch.sparse.mm(x, weight.T)
        return outputs - weight @ mean + bias
    # mean and deviation are not folded into the layer, because a large mean would cost precision
    return F.linear((x - mean) / deviation, weight, bias)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; 1 as the deviation of a constant feature."""
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
