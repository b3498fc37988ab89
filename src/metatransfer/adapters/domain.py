"""Domain adaptation without gradients: linear maps of a source and a target into one space."""

import warnings
from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from metatransfer.errors import UserError
from metatransfer.functional.domain import subspace

Array = NDArray[np.float64]
Labels = NDArray[Any] | None
_FEW = 0.01  # share of features, and of variance, below which a constant feature does not matter

__all__ = [
    "CorrelationAlignment",
    "DomainAdapter",
    "GeodesicFlowKernel",
    "JointDistributionAdaptation",
    "SubspaceAlignment",
    "TransferComponentAnalysis",
]


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
    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The matrices ``(d, k)`` that samples of the source ``(n, d)`` and the target ``(m, d)`` are multiplied by.

        ``y`` are the labels ``(n,)`` of the source, or ``None``.
        """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, target: ArrayLike | None = None) -> Self:
        """Learns both maps.

        Args:
            X: ``(n, d)`` source samples.
            y: ``(n,)`` their labels; most adapters ignore them.
            target: ``(m, d)`` target samples.

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

    def _mapped(self, x: ArrayLike, name: str) -> Array:
        check_is_fitted(self)
        return self._product(validate_data(self, x, dtype=np.float64, reset=False), getattr(self, name))

    def _product(self, x: Array, matrix: Array) -> Array:
        return x @ matrix

    def _dimension(self, wanted: int, source: Array, target: Array) -> int:
        if wanted < 1:
            raise UserError(f"{type(self).__name__}: n_components must be 1 or more, but is {wanted}.")
        return int(min(wanted, len(source), len(target), source.shape[1]))


class SubspaceAlignment(DomainAdapter):
    r"""Subspace Alignment (Fernando et al. 2013, ICCV; 1409.5241): rotates the source's principal directions.

    .. math:: z_s = x_s P_s P_s^\top P_t, \qquad z_t = x_t P_t

    Args:
        n_components: number of principal directions per domain; at most the rank of its samples.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The aligned directions of the source and the directions of the target."""
        mine, other = _directions(source, target, self._dimension(self.n_components, source, target))
        return mine @ (mine.T @ other), other


class GeodesicFlowKernel(DomainAdapter):
    r"""Geodesic Flow Kernel (Gong et al. 2012, CVPR): integrates over all subspaces between the domains' own.

    Inner products of the transformed samples are those of the kernel :math:`G=\int_0^1\Phi(t)\Phi(t)^\top dt`.

    Args:
        n_components: number of principal directions per domain; at most half the number of features.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The factor of the kernel, for both domains."""
        count = min(self._dimension(self.n_components, source, target), max(1, source.shape[1] // 2))
        factor = subspace.geodesic_flow_factor(*_directions(source, target, count))
        return factor, factor


class CorrelationAlignment(DomainAdapter):
    r"""CORAL (Sun, Feng, Saenko 2016, 1511.05547): gives the source the covariance of the target.

    .. math:: z_s = x_s\,(C_s + \lambda I)^{-1/2} (C_t + \lambda I)^{1/2}, \qquad z_t = x_t

    Args:
        regularization: :math:`\lambda`; must be positive if a domain has fewer samples than features.
    """

    def __init__(self, regularization: float = 1.0) -> None:
        self.regularization = regularization

    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The map of the source; target samples stay as they are.

        Raises:
            UserError: ``regularization`` is negative, or 0 although the source's covariance is singular.
        """
        if self.regularization < 0:
            raise UserError(f"CorrelationAlignment: regularization must be 0 or more, but is {self.regularization}.")
        if self.regularization == 0 and np.linalg.matrix_rank(source - source.mean(0)) < source.shape[1]:
            raise UserError(
                "CorrelationAlignment: the source's covariance is singular (constant or dependent features, or fewer "
                "samples than features): use a positive regularization, or remove these features."
            )
        return subspace.correlation_alignment(source, target, self.regularization), np.eye(source.shape[1])


class TransferComponentAnalysis(DomainAdapter):
    r"""Transfer Component Analysis (Pan et al. 2011, IEEE TNN 22(2)) with a linear kernel.

    Args:
        n_components: number of directions.
        regularization: :math:`\lambda` of :func:`metatransfer.functional.domain.subspace.transfer_components`.
        unit_length: whether to scale samples to length 1 before and after the map, as published results do.
    """

    def __init__(self, n_components: int = 30, regularization: float = 1.0, unit_length: bool = True) -> None:
        self.n_components, self.regularization, self.unit_length = n_components, regularization, unit_length

    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The components, for both domains."""
        found = self._components(source, target, None, None)
        return found, found

    def _components(self, source: Array, target: Array, labels: Labels, guesses: Labels) -> Array:
        if self.regularization <= 0:
            raise UserError(f"{type(self).__name__}: regularization must be above 0, but is {self.regularization}.")
        both = self._scaled(np.concatenate([source, target]))
        factor = subspace.discrepancy_matrix(labels, guesses, len(source), len(target))
        count = min(self._dimension(self.n_components, both, both), both.shape[1])
        return subspace.transfer_components(both, factor, count, self.regularization)

    def _scaled(self, x: Array) -> Array:
        found: Array = normalize(x) if self.unit_length else x
        return found

    def _product(self, x: Array, matrix: Array) -> Array:
        return self._scaled(self._scaled(x) @ matrix)


class JointDistributionAdaptation(TransferComponentAnalysis):
    """Joint Distribution Adaptation (Long et al. 2013, ICCV): TCA that also brings the means of each class together.

    Each iteration gives every target sample the label of its nearest source sample in the components found so far,
    and then computes the components again with these labels. Without source labels it is the same as TCA.

    Args:
        n_components: as in :class:`TransferComponentAnalysis`.
        regularization: as in :class:`TransferComponentAnalysis`.
        iterations: maximal number of iterations; it stops earlier if the labels no longer change.
        unit_length: as in :class:`TransferComponentAnalysis`.
    """

    def __init__(
        self, n_components: int = 30, regularization: float = 1.0, iterations: int = 10, unit_length: bool = True
    ) -> None:
        super().__init__(n_components, regularization, unit_length)
        self.iterations = iterations

    def find_maps(self, source: Array, y: Labels, target: Array) -> tuple[Array, Array]:
        """The components of the last iteration, for both domains.

        Raises:
            UserError: ``iterations`` is below 1.
        """
        if y is None:
            return super().find_maps(source, y, target)
        if self.iterations < 1:
            raise UserError(f"{type(self).__name__}: iterations must be 1 or more, but is {self.iterations}.")
        guesses: Labels = None
        for _ in range(self.iterations):
            found = self._components(source, target, y, guesses)
            mine, other = (self._product(x, found) for x in (source, target))
            new = KNeighborsClassifier(1).fit(mine, y).predict(other)
            if guesses is not None and np.array_equal(new, guesses):
                break
            guesses = new
        return found, found


def _directions(source: Array, target: Array, count: int) -> tuple[Array, Array]:
    """Principal directions ``(d, count)`` of both domains, each with its largest entry positive."""
    # from the samples, as their covariance would lose directions with little variance
    mine, other = (PCA(count, svd_solver="full").fit(x - x.mean(0)).components_.T for x in (source, target))
    return mine, other


def check_domains(estimator: BaseEstimator, source: ArrayLike, target: ArrayLike | None) -> tuple[Array, Array]:
    """Source ``(n, d)`` and target ``(m, d)`` in double precision; the source is also the target if there is none.

    Warns about features that are constant in one domain only, which no linear map can align, if they are at least 1 %
    of the features or have 1 % of the variance in the other domain. The estimator remembers the number and names of the
    features.

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
    for name, varying, constant, there in (
        ("source", "target", mine & ~other, target),
        ("target", "source", other & ~mine, source),
    ):
        variance = there.var(0)
        # a dead unit of a network among a thousand others is no reason to warn
        if constant.any() and max(constant.mean(), variance[constant].sum() / variance.sum()) >= _FEW:
            numbers = np.flatnonzero(constant)
            listed = ", ".join(map(str, numbers[:5])) + (" and more" if len(numbers) > 5 else "")
            warnings.warn(
                f"the {name} does not vary in {len(numbers)} of {len(constant)} features ({listed}), but the {varying} "
                "does: remove them from both domains unless this difference is intended.",
                stacklevel=4,
            )
