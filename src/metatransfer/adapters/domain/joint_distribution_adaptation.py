"""Joint distribution adaptation: transfer components that bring each class together, too."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from metatransfer.adapters.domain.domain_adapter import Array
from metatransfer.adapters.domain.transfer_component_analysis import TransferComponentAnalysis
from metatransfer.errors import UserError


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
