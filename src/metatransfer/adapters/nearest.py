"""Classifiers by the nearest class mean and by nearest neighbours."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters.feature_classifier import FeatureClassifier, Labelled, fitting
from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.meta.prototypes import Distance, class_prototypes, prototype_scores


class NearestClassMean(FeatureClassifier):
    r"""Predicts the class with the nearest mean: :math:`z_k = s\cos(f, c_k)` or :math:`-\lVert f-c_k\rVert^2`.

    Mensink et al. 2013 (PAMI 35(11)); a strong baseline for few labels (SimpleShot, Wang et al. 2019, 1911.04623).

    Args:
        distance: ``"cosine"`` or ``"euclidean"`` (squared).
        scale: factor :math:`s` of the cosine; changes the probabilities, but not the predictions.
    """

    def __init__(self, distance: Distance = "cosine", scale: float = 10.0) -> None:
        super().__init__()
        check_choice("distance", distance, ("cosine", "euclidean"))
        check_positive(scale=scale)
        self.distance, self.scale = distance, scale

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Computes the class means."""
        train, _ = self.check_labelled(train, num_classes)
        means = class_prototypes(train.x.unsqueeze(0), train.y.unsqueeze(0), num_classes)
        self.learned = {"means": means.squeeze(0)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Scores against the means."""
        means = fitting(self.learned["means"], x)
        return prototype_scores(x.unsqueeze(0), means.unsqueeze(0), self.distance, self.scale).squeeze(0)


class NearestNeighbors(FeatureClassifier):
    r"""A vote of the ``k`` nearest training samples with weights :math:`e^{\cos/\tau}` (Wu et al. 2018, 1805.01978).

    With the Euclidean distance the weights are :math:`e^{-\lVert f-x\rVert^2/\tau}`.

    Args:
        k: number of neighbours, at most the number of training samples.
        temperature: :math:`\tau`; the smaller, the more the nearest sample dominates.
        distance: ``"cosine"`` or ``"euclidean"``.
    """

    def __init__(self, k: int = 5, temperature: float = 0.07, distance: Distance = "cosine") -> None:
        super().__init__()
        check_positive(k=k, temperature=temperature)
        check_choice("distance", distance, ("cosine", "euclidean"))
        self.k, self.temperature, self.distance = k, temperature, distance

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Stores the training samples, scaled to unit length for the cosine."""
        train, _ = self.check_labelled(train, num_classes)
        x = F.normalize(train.x, dim=-1) if self.distance == "cosine" else train.x
        self.learned = {"x": x, "y": train.y, "classes": torch.arange(num_classes)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Logarithms of the shares of the vote."""
        known, y = fitting(self.learned["x"], x), self.learned["y"]
        if self.distance == "cosine":
            similarity = F.normalize(x, dim=-1) @ known.T
        else:  # a matrix product would not be precise enough for samples that are close together
            similarity = -torch.cdist(x, known, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearness, nearest = similarity.topk(min(self.k, len(known)))
        weight = (nearness / self.temperature).softmax(-1)
        votes = y[nearest].unsqueeze(-1) == self.learned["classes"]
        shares = (weight.unsqueeze(-1) * votes).sum(1)
        return shares.clamp(min=torch.finfo(x.dtype).eps).log()
