"""Domain adaptation without gradients: linear maps that bring a source and a target together.

Each is a scikit-learn transformer: ``fit(X, y, target=...)`` with labelled source samples and unlabelled target
samples, ``transform`` for samples of the target, ``transform_source`` for those of the source; what ``fit_transform``
returns are the source samples that it was fitted to, for a classifier to learn from.

Import them from this module: scikit-learn takes a second to start, which the command need not pay.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from metatransfer.errors import UserError
from metatransfer.functional import subspace

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
            UserError: domains with different numbers of features.
        """
        source: Array = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        other = source if target is None else check_array(target, dtype=np.float64, ensure_min_samples=2)
        if other.shape[1] != source.shape[1]:
            raise UserError(
                f"the source has {source.shape[1]} features, but the target {other.shape[1]}: give both domains the "
                "same features, in the same order."
            )
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


class SubspaceAlignment(DomainAdapter):
    r"""Subspace Alignment (Fernando et al. 2013, ICCV; 1409.5241): source directions are taken to the target's.

    .. math:: z_s = x_s P_s P_s^\top P_t, \qquad z_t = x_t P_t

    Args:
        n_components: directions of each domain; at most what its samples span.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """Principal directions of both, and their alignment."""
        count = self._dimension(self.n_components, source, target)
        mine, other = (subspace.principal_directions(x - x.mean(0), count) for x in (source, target))
        return subspace.alignment(mine, other), other


class GeodesicFlowKernel(DomainAdapter):
    r"""Geodesic Flow Kernel (Gong et al. 2012, CVPR): all subspaces between source and target at once, in closed form.

    Inner products of what it returns are those of the kernel :math:`G=\int_0^1\Phi(t)\Phi(t)^\top dt`.

    Args:
        n_components: directions of each domain; at most half of the features.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The factor of the kernel, for both domains."""
        count = min(self._dimension(self.n_components, source, target), max(1, source.shape[1] // 2))
        mine, other = (subspace.principal_directions(x - x.mean(0), count) for x in (source, target))
        factor = subspace.geodesic_flow_factor(mine, other)
        return factor, factor


class TransferComponentAnalysis(DomainAdapter):
    r"""Transfer Component Analysis (Pan et al. 2011, IEEE TNN 22(2)), linear: variance kept, means brought together.

    Args:
        n_components: directions.
        regularization: :math:`\lambda` of :func:`metatransfer.functional.subspace.transfer_components`.
        unit_length: bring samples to length 1 before and after, as the field's tables do.
    """

    def __init__(self, n_components: int = 30, regularization: float = 1.0, unit_length: bool = True) -> None:
        self.n_components, self.regularization, self.unit_length = n_components, regularization, unit_length

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The components, for both domains."""
        found = self._components(source, target, None, None)
        return found, found

    def _components(
        self, source: Array, target: Array, labels: NDArray[np.int64] | None, guesses: NDArray[np.int64] | None
    ) -> Array:
        if self.regularization <= 0:
            raise UserError(f"{type(self).__name__}: regularization must be above 0, but is {self.regularization}.")
        both = self._scaled(np.concatenate([source, target]))
        factor = subspace.discrepancy_matrix(labels, guesses, len(source), len(target))
        count = min(self._dimension(self.n_components, both, both), both.shape[1])
        return subspace.transfer_components(both, factor, count, self.regularization)

    def _scaled(self, x: Array) -> Array:
        if not self.unit_length:
            return x
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1.0)

    def _mapped(self, x: ArrayLike, name: str) -> Array:
        check_is_fitted(self)
        given: Array = validate_data(self, x, dtype=np.float64, reset=False)
        return self._scaled(self._scaled(given) @ getattr(self, name))


class JointDistributionAdaptation(TransferComponentAnalysis):
    """Joint Distribution Adaptation (Long et al. 2013, ICCV): TCA that brings the means of each class together, too.

    The target's classes are guessed by the nearest source sample in the space found so far, and the space is found
    anew, several times. Without labels of the source it is TCA.

    Args:
        n_components: as in :class:`TransferComponentAnalysis`.
        regularization: as in :class:`TransferComponentAnalysis`.
        iterations: how many times.
        unit_length: as in :class:`TransferComponentAnalysis`.
    """

    def __init__(
        self, n_components: int = 30, regularization: float = 1.0, iterations: int = 10, unit_length: bool = True
    ) -> None:
        super().__init__(n_components, regularization, unit_length)
        self.iterations = iterations

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The components after the last guess, for both domains.

        Raises:
            UserError: ``iterations`` below 1.
        """
        if y is None:
            return super().find_maps(source, y, target)
        if self.iterations < 1:
            raise UserError(f"{type(self).__name__}: iterations must be 1 or more, but is {self.iterations}.")
        labels = np.unique(y, return_inverse=True)[1].astype(np.int64)
        guesses: NDArray[np.int64] | None = None
        for _ in range(self.iterations):
            found = self._components(source, target, labels, guesses)
            mine, other = (self._scaled(self._scaled(x) @ found) for x in (source, target))
            new = KNeighborsClassifier(1).fit(mine, labels).predict(other)
            if guesses is not None and np.array_equal(new, guesses):
                break  # from here on nothing changes
            guesses = new
        return found, found


class CorrelationAlignment(DomainAdapter):
    r"""CORAL (Sun, Feng, Saenko 2016, 1511.05547): the source is given the target's covariance.

    .. math:: z_s = x_s\,(C_s + \lambda I)^{-1/2} (C_t + \lambda I)^{1/2}, \qquad z_t = x_t

    Args:
        regularization: :math:`\lambda`; above 0 where a domain has fewer samples than features.
    """

    def __init__(self, regularization: float = 1.0) -> None:
        self.regularization = regularization

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The map of the source; target samples stay as they are.

        Raises:
            UserError: a negative ``regularization``, or none where the source's covariance is singular.
        """
        if self.regularization < 0:
            raise UserError(f"CorrelationAlignment: regularization must be 0 or more, but is {self.regularization}.")
        if self.regularization == 0 and np.linalg.matrix_rank(source - source.mean(0)) < source.shape[1]:
            raise UserError(
                "CorrelationAlignment: the source's covariance is singular (constant or dependent features, or fewer "
                "samples than features): set regularization above 0, or take these features out."
            )
        identity = np.eye(source.shape[1])
        return subspace.correlation_alignment(source, target, self.regularization), identity
