"""The base class of domain adaptation without gradients: linear maps of a source and a target into one space.

Import adapters from :mod:`metatransfer.adapters.domain`: scikit-learn takes a second to import, so that the package
``metatransfer`` does not do so.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from metatransfer.errors import UserError

Array = NDArray[np.float64]


class DomainAdapter(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer that maps source and target samples linearly into the same space.

    ``fit(X, y, target=...)`` takes labelled source samples and unlabelled target samples. ``transform`` maps target
    samples, ``transform_source`` and ``fit_transform`` map source samples. If no target is given, the source is used as
    the target, so that both maps are the same. A subclass implements :meth:`find_maps`.

    Attributes:
        source_map_: ``(d, k)``.
        target_map_: ``(d, k)``.
    """

    @abstractmethod
    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """Computes the matrices that samples are multiplied by.

        Args:
            source: ``(n, d)``.
            y: ``(n,)`` labels, if the method uses them.
            target: ``(m, d)``.

        Returns:
            The map of the source and the map of the target, each ``(d, k)``.
        """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Learns both maps.

        Args:
            X: ``(n, d)`` source samples.
            y: ``(n,)`` their labels; most adapters ignore them.
            target: ``(m, d)`` target samples.

        Returns:
            The fitted adapter.

        Raises:
            UserError: a domain has fewer than two samples, holds NaN or infinity, or has other features than the other.
        """
        source, other = check_domains(self, X, target)
        labels = None if y is None else np.asarray(y)
        self.source_map_, self.target_map_ = self.find_maps(source, labels, other)
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Maps target samples ``(m, d)`` to ``(m, k)``."""
        return self._mapped(X, "target_map_")

    def transform_source(self, X: ArrayLike) -> Array:
        """Maps source samples ``(n, d)`` to ``(n, k)``."""
        return self._mapped(X, "source_map_")

    def fit_transform(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Array:
        """Learns both maps as :meth:`fit` does, and maps the source samples ``(n, d)`` to ``(n, k)``."""
        return self.fit(X, y, target=target).transform_source(X)

    def _validated(self, x: ArrayLike) -> Array:
        check_is_fitted(self)
        found: Array = validate_data(self, x, dtype=np.float64, reset=False)
        return found

    def _mapped(self, x: ArrayLike, name: str) -> Array:
        found: Array = self._validated(x) @ getattr(self, name)
        return found

    def _dimension(self, wanted: int, source: Array, target: Array) -> int:
        if wanted < 1:
            raise UserError(f"{type(self).__name__}: n_components must be 1 or more, but is {wanted}.")
        return int(min(wanted, len(source), len(target), source.shape[1]))


def check_domains(estimator: BaseEstimator, source: ArrayLike, target: ArrayLike | None) -> tuple[Array, Array]:
    """The samples of both domains in double precision; the source is also the target if there is none.

    Warns about features that are constant in one domain only, which no linear map can align.

    Args:
        estimator: the estimator being fitted; it remembers the number and names of the features.
        source: ``(n, d)``.
        target: ``(m, d)``.

    Returns:
        Source and target.

    Raises:
        UserError: a domain has fewer than two samples, holds NaN or infinity, or has other features than the other.
    """
    loose: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": False, "ensure_min_samples": 0}
    mine: Array = validate_data(estimator, source, **loose)
    _check_samples(mine, "source")
    if target is None:
        return mine, mine
    other: Array = check_array(target, input_name="target", **loose)
    _check_samples(other, "target")
    if other.shape[1] != mine.shape[1]:
        raise UserError(
            f"the source has {mine.shape[1]} features, but the target {other.shape[1]}: both domains need the same "
            "features in the same order."
        )
    _warn_of_constant_features(mine, other)
    return mine, other


def _check_samples(x: Array, name: str) -> None:
    if len(x) < 2:
        count = "1 sample" if len(x) == 1 else f"{len(x)} samples"
        raise UserError(f"the {name} has {count}, but at least 2 are needed: add samples to the {name}.")
    wrong = np.flatnonzero(~np.isfinite(x).all(1))
    if len(wrong):
        raise UserError(
            f"the {name} contains NaN or infinity in {len(wrong)} of {len(x)} samples, the first of them number "
            f"{wrong[0]}: clean or impute them."
        )


def _warn_of_constant_features(source: Array, target: Array) -> None:
    mine, other = ((x == x[0]).all(0) for x in (source, target))
    for name, varying, constant in (("source", "target", mine & ~other), ("target", "source", other & ~mine)):
        if constant.any():
            numbers = np.flatnonzero(constant)
            listed = ", ".join(map(str, numbers[:5])) + (" and more" if len(numbers) > 5 else "")
            warnings.warn(
                f"the {name} does not vary in {len(numbers)} of {len(constant)} features ({listed}), but the {varying} "
                "does: remove them from both domains unless this difference is intended.",
                stacklevel=4,
            )
