"""Importance weights from a classifier that tells the domains apart."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metatransfer.adapters.importance.importance_weights import Array, ImportanceWeights
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance


class DiscriminatorWeights(ImportanceWeights):
    r"""Weights :math:`\frac nm\frac{p}{1-p}` of a classifier's probability ``p`` of the target (Bickel et al. 2009).

    Logistic regression on features of unit variance: quick, and exact where the logarithm of the ratio is linear in
    the features, as with two normal distributions of the same covariance.

    Args:
        estimator: another classifier with ``predict_proba``; its answers to the samples it learned from must be
            probabilities, which those of a nearest neighbour or an unpruned tree are not.
        regularization: inverse strength ``C`` of the logistic regression.
        limit: no ratio is above it, before they are brought to mean 1.

    Attributes:
        estimator_: the fitted classifier; 1 is the target.
    """

    def __init__(
        self, estimator: BaseEstimator | None = None, regularization: float = 1.0, limit: float = 100.0
    ) -> None:
        self.estimator, self.regularization, self.limit = estimator, regularization, limit

    def find_weights(self, source: Array, target: Array) -> Array:
        """The weights.

        Raises:
            UserError: a number that is not above 0, or a classifier without probabilities.
        """
        if not (self.regularization > 0 and self.limit > 0):
            raise UserError(
                f"DiscriminatorWeights: regularization and limit must be above 0, but are {self.regularization} and "
                f"{self.limit}."
            )
        if self.estimator is None:
            logistic = LogisticRegression(C=self.regularization, max_iter=1000)
            self.estimator_ = make_pipeline(StandardScaler(), logistic)
        elif hasattr(self.estimator, "predict_proba"):
            self.estimator_ = clone(self.estimator)
        else:
            raise UserError(
                f"DiscriminatorWeights needs a classifier with predict_proba, but {type(self.estimator).__name__} has "
                "none: take LogisticRegression, or wrap it in CalibratedClassifierCV."
            )
        domain = np.repeat([0, 1], [len(source), len(target)])
        self.estimator_.fit(np.concatenate([source, target]), domain)
        probability = self.estimator_.predict_proba(source)[:, 1]
        return importance.discriminator_weights(probability, len(source), len(target), self.limit)
