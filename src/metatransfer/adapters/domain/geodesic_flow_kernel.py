"""Geodesic flow kernel: all subspaces between two domains at once."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.functional.domain import subspace


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
