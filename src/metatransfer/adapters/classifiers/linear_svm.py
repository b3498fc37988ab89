"""Linear support vector machines on features."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from metatransfer.adapters.classifiers.feature_classifier import FeatureClassifier, Labelled, linear_scores, moments
from metatransfer.checks import check_positive


class LinearSVM(FeatureClassifier):
    """Linear support vector machines, one class against the rest, by scikit-learn's ``LinearSVC`` (LIBLINEAR).

    Features are standardised with the statistics of the training samples. The outputs are margins; their softmax ranks
    the classes, but is not a calibrated probability.

    Args:
        C: inverse strength of the regularisation.

    Raises:
        UserError: ``C`` is not positive.
    """

    def __init__(self, C: float = 0.01) -> None:
        super().__init__()
        check_positive(C=C)
        self.C = C

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Fits one machine per class."""
        from sklearn.svm import LinearSVC  # takes a second to import

        train, _ = self.check_labelled(train, num_classes)
        mean, deviation = moments(train.x)
        machine = LinearSVC(C=self.C, dual="auto", random_state=0)
        machine.fit(((train.x - mean) / deviation).cpu().double().numpy(), train.y.cpu().numpy())
        weight = torch.as_tensor(machine.coef_, dtype=train.x.dtype, device=train.x.device)
        bias = torch.as_tensor(machine.intercept_, dtype=train.x.dtype, device=train.x.device)
        if len(weight) == 1:  # two classes share one machine
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        self.learned = {"weight": weight, "bias": bias, "mean": mean, "deviation": deviation}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """The margins."""
        return linear_scores(self.learned, x)
