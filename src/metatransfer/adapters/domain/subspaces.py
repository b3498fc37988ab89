"""Linear maps that align the covariances or the principal subspaces of two domains."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.errors import UserError
from metatransfer.functional.domain import subspace


class SubspaceAlignment(DomainAdapter):
    r"""Subspace Alignment (Fernando et al. 2013, ICCV; 1409.5241): rotates the source's principal directions.

    .. math:: z_s = x_s P_s P_s^\top P_t, \qquad z_t = x_t P_t

    Args:
        n_components: number of principal directions per domain; at most the rank of its samples.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The aligned directions of the source and the directions of the target."""
        mine, other = _directions(source, target, self._dimension(self.n_components, source, target))
        return subspace.alignment(mine, other), other


class GeodesicFlowKernel(DomainAdapter):
    r"""Geodesic Flow Kernel (Gong et al. 2012, CVPR): integrates over all subspaces between the domains' own.

    Inner products of the transformed samples are those of the kernel :math:`G=\int_0^1\Phi(t)\Phi(t)^\top dt`.

    Args:
        n_components: number of principal directions per domain; at most half the number of features.
    """

    def __init__(self, n_components: int = 20) -> None:
        self.n_components = n_components

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
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

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
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


def _directions(source: Array, target: Array, count: int) -> tuple[Array, Array]:
    mine, other = (subspace.principal_directions(x - x.mean(0), count) for x in (source, target))
    return mine, other
