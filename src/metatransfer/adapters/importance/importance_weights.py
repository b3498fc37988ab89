"""The base class of importance weights for source samples."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from metatransfer.adapters.domain.domain_adapter import Array, check_domains
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance

_FEW = 0.1  # of the samples


class ImportanceWeights(BaseEstimator):  # type: ignore[misc]
    """Estimates the density ratio :math:`p_t(x)/p_s(x)` of source samples.

    Importance weights correct covariate shift (Shimodaira 2000): the domains differ in how often samples occur, but not
    in how they are labelled, and the source covers the target. If no target is given, the source is used as the target.
    A subclass implements :meth:`find_weights`.

    Attributes:
        weights_: ``(n,)`` weights of mean 1, in the order of the source samples.
        effective_sample_size_: number of equally weighted samples that are worth as much, from 1 to ``n``.
    """

    @abstractmethod
    def find_weights(self, source: Array, target: Array) -> Array:
        """Computes the weights up to a factor.

        Args:
            source: ``(n, d)``.
            target: ``(m, d)``.

        Returns:
            ``(n,)``, not negative.
        """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Computes the weights; warns if the effective sample size is below a tenth of the samples.

        Args:
            X: ``(n, d)`` source samples.
            y: ignored.
            target: ``(m, d)`` target samples.

        Returns:
            The fitted weights.

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
                f"{type(self).__name__} leaves {self.effective_sample_size_:.1f} of {len(source)} source samples in "
                "effect: the domains hardly overlap, and results with these weights will vary a lot.",
                stacklevel=2,
            )
        return self

    def _bandwidth(self, wanted: float | None, source: Array, target: Array) -> float:
        if wanted is None:
            return importance.median_bandwidth(np.concatenate([source, target]))
        if not 0 < wanted < np.inf:
            raise UserError(f"{type(self).__name__}: bandwidth must be a number above 0 or None, but is {wanted}.")
        return float(wanted)
