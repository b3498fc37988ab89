"""Subspace alignment: the source's principal directions are taken to the target's."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.functional.domain import subspace


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
