"""The base of importance weights: source samples count as much as they would in the target."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from metatransfer.adapters.domain.checks import check_domains
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance

Array = NDArray[np.float64]
_FEW = 0.1  # of the samples


class ImportanceWeights(BaseEstimator):  # type: ignore[misc]
    """Weights of source samples, :math:`p_t(x)/p_s(x)`, from samples of both domains.

    They help where the domains differ in how often samples occur, not in how samples are labelled (covariate shift,
    Shimodaira 2000), and where the source holds samples wherever the target does. A subclass says how they are found
    (:meth:`find_weights`). Without a target the source stands for it.

    Attributes:
        weights_: ``(n,)`` of mean 1, in the order of the samples that it was fitted to.
        effective_sample_size_: how many equally weighted samples are as good, from 1 to ``n``.
    """

    @abstractmethod
    def find_weights(self, source: Array, target: Array) -> Array:
        """Finds the weights, up to a factor.

        Args:
            source: ``(n, d)``.
            target: ``(m, d)``.

        Returns:
            ``(n,)``, not negative.
        """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Finds the weights; warns where fewer than a tenth of the samples are left in effect.

        Args:
            X: ``(n, d)`` samples of the source.
            y: not looked at.
            target: ``(m, d)`` samples of the target.

        Returns:
            Itself.

        Raises:
            UserError: an empty domain or a single sample, NaN, domains with different numbers of features, or weights
                that are all 0.
        """
        source, other = check_domains(self, X, target)
        found = self.find_weights(source, other)
        mean = found.mean()
        if not (np.isfinite(mean) and mean > 0):
            raise UserError(
                f"{type(self).__name__} finds no source sample near the target: scale the features alike in both "
                "domains, or raise the bandwidth."
            )
        self.weights_: Array = found / mean
        self.effective_sample_size_ = importance.effective_sample_size(self.weights_)
        if self.effective_sample_size_ < _FEW * len(source):
            warnings.warn(
                f"{type(self).__name__} leaves {self.effective_sample_size_:.1f} of {len(source)} source samples in "
                "effect: the domains hardly overlap, and what is learned with these weights will vary a lot.",
                stacklevel=2,
            )
        return self

    def _bandwidth(self, wanted: float | None, source: Array, target: Array) -> float:
        """What is wanted, or the median distance of the samples of both domains.

        Raises:
            UserError: a bandwidth that is not above 0.
        """
        if wanted is None:
            return importance.median_bandwidth(np.concatenate([source, target]))
        if not 0 < wanted < np.inf:
            raise UserError(f"{type(self).__name__}: bandwidth must be a number above 0 or None, but is {wanted}.")
        return float(wanted)
