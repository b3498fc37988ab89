"""Classifiers by nearness: to the means of the classes, or to single samples."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters.feature_classifier import FeatureClassifier, Labelled, fitting
from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.prototypes import Distance, class_prototypes, prototype_scores


class NearestClassMean(FeatureClassifier):
    r"""The class whose mean is nearest: :math:`z_k = s\cos(f, c_k)` or :math:`-\lVert f-c_k\rVert^2`.

    Mensink et al. 2013 (PAMI 35(11)); with few labels hard to beat (SimpleShot, Wang et al. 2019, 1911.04623).

    Args:
        distance: ``"cosine"`` or ``"euclidean"`` (squared).
        scale: factor :math:`s` of the cosine: it changes the probabilities, not the answers.

    Raises:
        UserError: an unknown distance, or a scale that is not above 0.
    """

    def __init__(self, distance: Distance = "cosine", scale: float = 10.0) -> None:
        super().__init__()
        check_choice("distance", distance, ("cosine", "euclidean"))
        check_positive(scale=scale)
        self.distance, self.scale = distance, scale

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """The class means."""
        train, _ = self.check_labelled(train, num_classes)
        means = class_prototypes(train.x.unsqueeze(0), train.y.unsqueeze(0), num_classes)
        self.learned = {"means": means.squeeze(0)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Scores against the means."""
        means = fitting(self.learned["means"], x)
        return prototype_scores(x.unsqueeze(0), means.unsqueeze(0), self.distance, self.scale).squeeze(0)


class NearestNeighbors(FeatureClassifier):
    r"""The classes of the ``k`` nearest training samples, each weighing :math:`e^{\cos/\tau}`.

    Wu et al. 2018 (1805.01978).

    Args:
        k: how many neighbours; all training samples where there are fewer.
        temperature: :math:`\tau`; the smaller, the more the nearest alone counts.

    Raises:
        UserError: a number that is not above 0.
    """

    def __init__(self, k: int = 5, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(k=k, temperature=temperature)
        self.k, self.temperature = k, temperature

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Keeps the training samples, at unit length."""
        train, _ = self.check_labelled(train, num_classes)
        self.learned = {"x": F.normalize(train.x, dim=-1), "y": train.y, "classes": torch.tensor(num_classes)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Logarithms of the parts of the votes."""
        known, y = fitting(self.learned["x"], x), self.learned["y"]
        cosine, nearest = (F.normalize(x, dim=-1) @ known.T).topk(min(self.k, len(known)))
        weight = (cosine / self.temperature).softmax(-1)
        votes = F.one_hot(y[nearest], int(self.learned["classes"]))
        shares = (weight.unsqueeze(-1) * votes).sum(1)
        return shares.clamp(min=torch.finfo(x.dtype).eps).log()
