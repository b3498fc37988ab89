"""Transfer components: directions that keep variance and bring the means of two domains together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from metatransfer.adapters.classifiers.feature_classifier import Labelled
from metatransfer.adapters.classifiers.nearest import NearestNeighbors
from metatransfer.adapters.domain.domain_adapter import Array, DomainAdapter
from metatransfer.errors import UserError
from metatransfer.functional.domain import subspace


class TransferComponentAnalysis(DomainAdapter):
    r"""Transfer Component Analysis (Pan et al. 2011, IEEE TNN 22(2)) with a linear kernel.

    Args:
        n_components: number of directions.
        regularization: :math:`\lambda` of :func:`metatransfer.functional.domain.subspace.transfer_components`.
        unit_length: whether to scale samples to length 1 before and after the map, as published results do.
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
        return self._scaled(self._scaled(self._validated(x)) @ getattr(self, name))


class JointDistributionAdaptation(TransferComponentAnalysis):
    """Joint Distribution Adaptation (Long et al. 2013, ICCV): TCA that also brings the means of each class together.

    Each iteration labels every target sample like its nearest source sample among the components found so far, and
    then computes the components again with these labels. Without source labels it is the same as TCA.

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

    def find_maps(self, source: Array, y: NDArray[Any] | None, target: Array) -> tuple[Array, Array]:
        """The components of the last iteration, for both domains.

        Raises:
            UserError: ``iterations`` is below 1.
        """
        if y is None:
            return super().find_maps(source, y, target)
        if self.iterations < 1:
            raise UserError(f"{type(self).__name__}: iterations must be 1 or more, but is {self.iterations}.")
        labels = np.unique(y, return_inverse=True)[1].astype(np.int64)
        guesses: NDArray[np.int64] | None = None
        for _ in range(self.iterations):
            found = self._components(source, target, labels, guesses)
            new = _nearest_labels(labels, *(self._scaled(self._scaled(x) @ found) for x in (source, target)))
            if guesses is not None and np.array_equal(new, guesses):
                break
            guesses = new
        return found, found


def _nearest_labels(labels: NDArray[np.int64], source: Array, target: Array) -> NDArray[np.int64]:
    known = Labelled(torch.from_numpy(source), torch.from_numpy(labels))
    classifier = NearestNeighbors(1, distance="euclidean").fit(known, int(labels.max()) + 1)
    # in parts, because all distances at once may not fit into memory
    parts = [torch.from_numpy(target[start : start + 1024]) for start in range(0, len(target), 1024)]
    found: NDArray[np.int64] = torch.cat([classifier.predict(part) for part in parts]).numpy()
    return found
