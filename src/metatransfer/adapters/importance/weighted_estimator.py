"""A classifier that learns from a source as if it were the target, by weighting its samples."""

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
    """Fits a classifier to the source, each sample weighted by its importance for the target (Shimodaira 2000).

    Args:
        estimator: a classifier whose ``fit`` takes ``sample_weight``, or a pipeline that ends with one.
        weights: how the weights are found.

    Attributes:
        estimator_: the fitted classifier.
        weighting_: the fitted weights.
        weights_: ``(n,)`` of the samples that it was fitted to, of mean 1.
        classes_: the labels.
    """

    def __init__(self, estimator: BaseEstimator, weights: ImportanceWeights) -> None:
        self.estimator, self.weights = estimator, weights

    def fit(self, X: ArrayLike, y: ArrayLike, *, target: ArrayLike | None = None) -> Self:
        """Finds the weights, and fits the classifier with them.

        Args:
            X: ``(n, d)`` samples of the source.
            y: ``(n,)`` their labels.
            target: ``(m, d)`` samples of the target; without them the source stands for it.

        Returns:
            Itself.

        Raises:
            UserError: a classifier that takes no weights, and what the weights refuse.
        """
        # numbers that are not finite are left to the weights, which say in which domain they are
        samples, labels = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=0)
        check_classification_targets(labels)
        argument = self._argument()
        self.weighting_ = clone(self.weights).fit(samples, target=target)
        self.weights_ = self.weighting_.weights_
        self.estimator_ = clone(self.estimator).fit(samples, labels, **{argument: self.weights_})
        self.classes_: NDArray[Any] = self.estimator_.classes_
        return self

    def _argument(self) -> str:
        """The argument of ``fit`` that takes the weights.

        Raises:
            UserError: there is none.
        """
        pipeline = isinstance(self.estimator, Pipeline)
        name, last = self.estimator.steps[-1] if pipeline else ("", self.estimator)
        if not has_fit_parameter(last, "sample_weight"):
            raise UserError(
                f"ImportanceWeightedClassifier needs a classifier that can weight samples, but {type(last).__name__}'s "
                "fit takes no sample_weight: choose one that does, such as LogisticRegression or SVC."
            )
        return f"{name}__sample_weight" if pipeline else "sample_weight"

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels of samples ``(n, d)``."""
        samples = self._samples(X)
        found: NDArray[Any] = self.estimator_.predict(samples)
        return found

    @available_if(_offers("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities ``(n, C)`` of samples ``(n, d)``, in the order of ``classes_``."""
        samples = self._samples(X)
        found: NDArray[np.float64] = self.estimator_.predict_proba(samples)
        return found

    @available_if(_offers("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores ``(n,)`` or ``(n, C)`` of samples ``(n, d)``."""
        samples = self._samples(X)
        found: NDArray[np.float64] = self.estimator_.decision_function(samples)
        return found

    def _samples(self, x: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        found: NDArray[np.float64] = validate_data(self, x, dtype=np.float64, reset=False)
        return found
