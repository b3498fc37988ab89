"""Transfer component analysis: variance is kept while the means of two domains are brought together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.errors import UserError
from metatransfer.functional.domain import subspace


class TransferComponentAnalysis(DomainAdapter):
    r"""Transfer Component Analysis (Pan et al. 2011, IEEE TNN 22(2)), linear: variance kept, means brought together.

    Args:
        n_components: directions.
        regularization: :math:`\lambda` of :func:`metatransfer.functional.domain.subspace.transfer_components`.
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
