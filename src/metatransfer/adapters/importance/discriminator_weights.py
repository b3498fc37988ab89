"""Importance weights from a classifier that distinguishes the domains."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metatransfer.adapters.domain.domain_adapter import Array
from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance


class DiscriminatorWeights(ImportanceWeights):
    r"""Weights :math:`\frac nm\frac{p}{1-p}`, where ``p`` is the predicted probability of the target (Bickel 2009).

    The classifier is logistic regression on standardised features by default. It is fast, and exact if the logarithm of
    the density ratio is linear in the features, as for two normal distributions with the same covariance.

    Args:
        estimator: another classifier with ``predict_proba``. It must be calibrated on its own training samples, unlike
            nearest neighbours or an unpruned tree.
        regularization: inverse strength ``C`` of the logistic regression.
        limit: upper bound of the ratios, before they are scaled to mean 1.

    Attributes:
        estimator_: the fitted classifier; class 1 is the target.
    """

    def __init__(
        self, estimator: BaseEstimator | None = None, regularization: float = 1.0, limit: float = 100.0
    ) -> None:
        self.estimator, self.regularization, self.limit = estimator, regularization, limit

    def find_weights(self, source: Array, target: Array) -> Array:
        """The ratios of the source samples.

        Raises:
            UserError: an argument is not positive, or the classifier has no probabilities.
        """
        if not (self.regularization > 0 and self.limit > 0):
            raise UserError(
                f"DiscriminatorWeights: regularization and limit must be above 0, but are {self.regularization} and "
                f"{self.limit}."
            )
        if self.estimator is None:
            self.estimator_ = make_pipeline(StandardScaler(), LogisticRegression(C=self.regularization, max_iter=1000))
        elif hasattr(self.estimator, "predict_proba"):
            self.estimator_ = clone(self.estimator)
        else:
            raise UserError(
                f"DiscriminatorWeights needs a classifier with predict_proba, but {type(self.estimator).__name__} has "
                "none: use LogisticRegression, or wrap it in CalibratedClassifierCV."
            )
        domain = np.repeat([0, 1], [len(source), len(target)])
        self.estimator_.fit(np.concatenate([source, target]), domain)
        probability = self.estimator_.predict_proba(source)[:, 1]
        return importance.discriminator_weights(probability, len(source), len(target), self.limit)
