"""Weights of source samples by how likely they are in the target domain, and a classifier that uses them."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from metatransfer.adapters.domain import Array, check_domains
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance

__all__ = ["KLIEP", "DiscriminatorWeights", "ImportanceWeightedClassifier", "ImportanceWeights", "KernelMeanMatching"]
MULTIPLES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 1.5, 2.0)
_FEW = 0.1  # of the samples


class ImportanceWeights(BaseEstimator):  # type: ignore[misc]
    """Estimates the density ratio :math:`p_t(x)/p_s(x)` of source samples.

    Importance weights correct covariate shift (Shimodaira 2000): the domains differ in how often samples occur, but not
    in how they are labelled, and the source covers the target. If no target is given, the source is used as the target.
    A subclass implements :meth:`find_weights`.

    Attributes:
        weights_: ``(n,)`` weights of mean 1, in the order of the source samples.
        effective_sample_size_: equivalent number of equally weighted samples, from 1 to ``n``.
    """

    @abstractmethod
    def find_weights(self, source: Array, target: Array) -> Array:
        """Weights ``(n,)`` up to a factor, not negative, of source samples ``(n, d)`` for a target ``(m, d)``."""

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Computes the weights; warns if the effective sample size is below a tenth of the samples.

        Args:
            X: ``(n, d)`` source samples.
            y: ignored.
            target: ``(m, d)`` target samples.

        Raises:
            UserError: a domain has fewer than two samples, holds NaN or infinity, or has other features than the other,
                or all weights are 0.
        """
        source, other = check_domains(self, X, target)
        found = self.find_weights(source, other)
        mean = found.mean()
        if not (np.isfinite(mean) and mean > 0):
            raise UserError(
                f"{type(self).__name__} finds no source sample near the target: use the same feature scale in both "
                "domains, or increase the bandwidth."
            )
        self.weights_: Array = found / mean
        self.effective_sample_size_ = importance.effective_sample_size(self.weights_)
        if self.effective_sample_size_ < _FEW * len(source):
            warnings.warn(
                f"{type(self).__name__} has an effective sample size of {self.effective_sample_size_:.1f} of "
                f"{len(source)}: the domains hardly overlap, and results with these weights will vary a lot.",
                stacklevel=2,
            )
        return self

    def _bandwidth(self, wanted: float | None, source: Array, target: Array) -> float:
        if wanted is None:
            return importance.median_bandwidth(np.concatenate([source, target]))
        if not 0 < wanted < np.inf:
            raise UserError(f"{type(self).__name__}: bandwidth must be a number above 0 or None, but is {wanted}.")
        return float(wanted)


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


class KernelMeanMatching(ImportanceWeights):
    r"""Kernel mean matching (Huang et al. 2006, NIPS 19) with a Gaussian kernel.

    The weights bring the mean of the source in the kernel's feature space to that of the target. The quadratic program
    is solved exactly: time is cubic and memory quadratic in the number of source samples (seconds for 2,000).

    Args:
        bandwidth: :math:`\sigma` of :math:`e^{-\lVert x-y\rVert^2/(2\sigma^2)}`; defaults to the median distance
            between samples of both domains.
        limit: upper bound of the weights.
        slack: how far the mean of the weights may be from 1 in the program, before they are scaled to mean 1; defaults
            to :math:`(\sqrt n-1)/\sqrt n`.
    """

    def __init__(self, bandwidth: float | None = None, limit: float = 1000.0, slack: float | None = None) -> None:
        self.bandwidth, self.limit, self.slack = bandwidth, limit, slack

    def find_weights(self, source: Array, target: Array) -> Array:
        """The solution of the quadratic program."""
        bandwidth = self._bandwidth(self.bandwidth, source, target)
        kernel = importance.gaussian_kernel(source, source, bandwidth)
        similarity = importance.gaussian_kernel(source, target, bandwidth).mean(1) * len(source)
        return importance.kernel_mean_matching(kernel, similarity, self.limit, self.slack)


class KLIEP(ImportanceWeights):
    r"""Kullback-Leibler Importance Estimation Procedure (Sugiyama et al. 2008, NIPS 20).

    The density ratio is a sum of Gaussian kernels at target samples. Their bandwidth is chosen by cross-validation of
    the target's likelihood.

    Args:
        bandwidth: :math:`\sigma`; if omitted, chosen from 0.1 to 2 times the median distance between samples.
        centers: number of kernels, at randomly drawn target samples.
        folds: number of folds of the cross-validation.
        random_state: seed of centers and folds.

    Attributes:
        bandwidth_: the bandwidth.
        centers_: ``(L, d)`` centers of the kernels.
        alpha_: ``(L,)`` weights of the kernels.
    """

    def __init__(
        self, bandwidth: float | None = None, centers: int = 100, folds: int = 5, random_state: int | None = 0
    ) -> None:
        self.bandwidth, self.centers, self.folds, self.random_state = bandwidth, centers, folds, random_state

    def find_weights(self, source: Array, target: Array) -> Array:
        """The density ratio of the source samples.

        Raises:
            UserError: fewer than two centers or folds.
        """
        if self.centers < 2 or self.folds < 2:
            raise UserError(
                f"KLIEP needs 2 centers and 2 folds or more, but got centers={self.centers} and folds={self.folds}."
            )
        generator = check_random_state(self.random_state)
        self.bandwidth_ = self._bandwidth(self.bandwidth, source, target)
        order = generator.permutation(len(target))
        centers = order[: self.centers]
        self.centers_ = target[centers]
        if self.bandwidth is None:
            fold = np.empty(len(target), np.int64)
            fold[order] = np.arange(len(target)) % self.folds  # every fold has some of the centers
            candidates = [multiple * self.bandwidth_ for multiple in MULTIPLES]
            self.bandwidth_ = importance.kliep_bandwidth(source, target, centers, candidates, fold)
        mine, other = (importance.gaussian_kernel(x, self.centers_, self.bandwidth_) for x in (source, target))
        self.alpha_ = importance.kliep(mine, other)
        return importance.kliep_weights(mine, self.alpha_)


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
