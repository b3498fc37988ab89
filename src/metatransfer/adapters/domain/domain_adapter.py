"""The base of domain adaptation without gradients: linear maps that bring a source and a target together.

Each is a scikit-learn transformer: ``fit(X, y, target=...)`` with labelled source samples and unlabelled target
samples, ``transform`` for samples of the target, ``transform_source`` for those of the source; what ``fit_transform``
returns are the source samples that it was fitted to, for a classifier to learn from.

Import them from their own modules: scikit-learn takes a second to start, which the command need not pay.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from metatransfer.adapters.domain.checks import check_domains
from metatransfer.errors import UserError

Array = NDArray[np.float64]


class DomainAdapter(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A linear map of the source's samples and one of the target's, into the same space.

    A subclass says how both maps are found (:meth:`find_maps`). Without a target the source stands for it: nothing is
    adapted, and both maps are the same.

    Attributes:
        source_map_: ``(d, k)``.
        target_map_: ``(d, k)``.
    """

    @abstractmethod
    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """Finds what samples are multiplied by.

        Args:
            source: ``(n, d)``.
            y: ``(n,)`` labels, where the method uses them.
            target: ``(m, d)``.

        Returns:
            The source's map and the target's, each ``(d, k)``.
        """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Learns both maps.

        Args:
            X: ``(n, d)`` samples of the source.
            y: ``(n,)`` their labels; looked at only by those that say so.
            target: ``(m, d)`` samples of the target.

        Returns:
            Itself.

        Raises:
            UserError: an empty domain or a single sample, NaN, or domains with different numbers of features.
        """
        source, other = check_domains(self, X, target)
        labels = None if y is None else np.asarray(y)
        self.source_map_, self.target_map_ = self.find_maps(source, labels, other)
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Samples of the target ``(m, d)`` in the common space."""
        return self._mapped(X, "target_map_")

    def transform_source(self, X: ArrayLike) -> Array:
        """Samples of the source ``(n, d)`` in the common space."""
        return self._mapped(X, "source_map_")

    def fit_transform(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        target: ArrayLike | None = None,
    ) -> Array:
        """Learns both maps, and returns the source's samples in the common space.

        Args:
            X: as in :meth:`fit`.
            y: as in :meth:`fit`.
            target: as in :meth:`fit`.

        Returns:
            ``(n, k)``.
        """
        return self.fit(X, y, target=target).transform_source(X)

    def _mapped(self, x: ArrayLike, name: str) -> Array:
        check_is_fitted(self)
        found: Array = validate_data(self, x, dtype=np.float64, reset=False) @ getattr(self, name)
        return found

    def _dimension(self, wanted: int, source: Array, target: Array) -> int:
        """The number of directions.

        Raises:
            UserError: below 1, or more than the samples of a domain span.
        """
        most = int(min(len(source), len(target), source.shape[1]))
        if wanted < 1:
            raise UserError(f"{type(self).__name__}: n_components must be 1 or more, but is {wanted}.")
        return min(wanted, most)
