"""Correlation alignment: the source is given the target's covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.errors import UserError
from metatransfer.functional.domain import subspace


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
