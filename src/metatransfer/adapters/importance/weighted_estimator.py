"""A classifier that is fitted to importance-weighted source samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.errors import UserError


def _offers(name: str) -> Callable[[Any], bool]:
    return lambda self: hasattr(self.estimator, name)


class ImportanceWeightedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits a classifier to source samples that are weighted by their importance for the target (Shimodaira 2000).

    Args:
        estimator: a classifier whose ``fit`` accepts ``sample_weight``, or a pipeline that ends with one.
        weights: the estimator of the weights.

    Attributes:
        estimator_: the fitted classifier.
        weighting_: the fitted weights.
        weights_: ``(n,)`` weights of mean 1 of the source samples.
        classes_: the labels.
    """

    def __init__(self, estimator: BaseEstimator, weights: ImportanceWeights) -> None:
        self.estimator, self.weights = estimator, weights

    def fit(self, X: ArrayLike, y: ArrayLike, *, target: ArrayLike | None = None) -> Self:
        """Computes the weights and fits the classifier with them.

        Args:
            X: ``(n, d)`` source samples.
            y: ``(n,)`` their labels.
            target: ``(m, d)`` target samples; defaults to the source samples.

        Returns:
            The fitted classifier.

        Raises:
            UserError: the classifier accepts no weights, or the weights cannot be computed.
        """
        # NaN and infinity are left to the weights, whose message names the domain
        samples, labels = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=0)
        check_classification_targets(labels)
        argument = self._argument()
        self.weighting_ = clone(self.weights).fit(samples, target=target)
        self.weights_ = self.weighting_.weights_
        self.estimator_ = clone(self.estimator).fit(samples, labels, **{argument: self.weights_})
        self.classes_: NDArray[Any] = self.estimator_.classes_
        return self

    def _argument(self) -> str:
        pipeline = isinstance(self.estimator, Pipeline)
        name, last = self.estimator.steps[-1] if pipeline else ("", self.estimator)
        if not has_fit_parameter(last, "sample_weight"):
            raise UserError(
                f"ImportanceWeightedClassifier needs a classifier with sample weights, but {type(last).__name__}'s fit "
                "takes no sample_weight: choose one that does, such as LogisticRegression or SVC."
            )
        return f"{name}__sample_weight" if pipeline else "sample_weight"

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels of samples ``(n, d)``."""
        return self._answer("predict", X)

    @available_if(_offers("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities ``(n, C)`` of samples ``(n, d)``, in the order of ``classes_``."""
        return self._answer("predict_proba", X)

    @available_if(_offers("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores ``(n,)`` or ``(n, C)`` of samples ``(n, d)``."""
        return self._answer("decision_function", X)

    def _answer(self, method: str, x: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        samples = validate_data(self, x, dtype=np.float64, reset=False)
        found: NDArray[Any] = getattr(self.estimator_, method)(samples)
        return found
