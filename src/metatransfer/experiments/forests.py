"""Random forests over tasks, by which methods are compared."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

Array = NDArray[np.float64]


class Forests(ABC):
    """Forests that compare ``M`` methods by the features of a task.

    Args:
        num_trees: trees of each forest.
        seed: seed of each forest.
    """

    def __init__(self, num_trees: int, seed: int) -> None:
        self.num_trees, self.seed = num_trees, seed

    @abstractmethod
    def fit(self, x: Array, scores: Array) -> None:
        """Learns from known tasks ``(T, F)`` and scores ``(T, M)``, NaN if missing."""

    @abstractmethod
    def votes(self, x: Array) -> Array:
        """``(N, M)`` what the methods are ordered by on tasks ``(N, F)``; higher is better."""

    @abstractmethod
    def importances(self) -> Array:
        """``(F,)`` mean impurity importance of the features."""

    def _regressor(self) -> "RandomForestRegressor":
        from sklearn.ensemble import RandomForestRegressor  # slow to import

        return RandomForestRegressor(self.num_trees, random_state=self.seed, max_features=1 / 3)


class PairwiseForests(Forests):
    """One regressor for each pair, which predicts how much better one method is than the other."""

    def fit(self, x: Array, scores: Array) -> None:
        """Fits each pair on the tasks on which both methods have a score; a pair without such tasks does not count."""
        self.size, self.dimensions = scores.shape[1], x.shape[1]
        self.pairs: dict[tuple[int, int], RandomForestRegressor] = {}
        for a, b in itertools.combinations(range(self.size), 2):
            difference = scores[:, a] - scores[:, b]
            known = np.isfinite(difference)
            if known.any():
                self.pairs[a, b] = self._regressor().fit(x[known], difference[known])

    def votes(self, x: Array) -> Array:
        """Mean over the other methods of the predicted difference to them."""
        found = np.zeros((len(x), self.size))
        for (a, b), forest in self.pairs.items():
            gain = forest.predict(x) / (self.size - 1)
            found[:, a] += gain
            found[:, b] -= gain
        return found

    def importances(self) -> Array:
        """Mean over the pairs."""
        return _mean([one.feature_importances_ for one in self.pairs.values()] or [np.zeros(self.dimensions)])


class ScoreForests(Forests):
    """One regressor for each method, which predicts its score."""

    def fit(self, x: Array, scores: Array) -> None:
        """Fits each method on the tasks on which it has a score."""
        self.forests = []
        for score in scores.T:
            known = np.isfinite(score)
            self.forests.append(self._regressor().fit(x[known], score[known]))

    def votes(self, x: Array) -> Array:
        """The predicted scores."""
        return np.stack([forest.predict(x) for forest in self.forests], 1)

    def trees(self, x: Array, method: int) -> Array:
        """``(num_trees, N)`` the predictions of the trees for a method."""
        single = np.ascontiguousarray(x, dtype=np.float32)  # checked once instead of by each tree
        return np.stack([tree.predict(single, check_input=False) for tree in self.forests[method].estimators_])

    def mean_and_spread(self, x: Array) -> tuple[Array, Array]:
        """``(M,)`` expected scores of one task ``(1, F)``, and their standard deviations over trees."""
        trees = np.stack([self.trees(x, method)[:, 0] for method in range(len(self.forests))])
        return trees.mean(1), trees.std(1)

    def difference(self, x: Array, first: int, other: int) -> tuple[float, float]:
        """Expected difference of two methods' scores on one task, and its standard deviation over trees.

        All forests see the same bootstrap samples if no score is missing, so that the difference is paired.
        """
        found = self.trees(x, first)[:, 0] - self.trees(x, other)[:, 0]
        return float(found.mean()), float(found.std())

    def importances(self) -> Array:
        """Mean over the methods."""
        return _mean([forest.feature_importances_ for forest in self.forests])


FORESTS: dict[str, type[Forests]] = {
    "pairwise": PairwiseForests,
    "regression": ScoreForests,
}


def _mean(found: Sequence[Array]) -> Array:
    mean: Array = np.mean(found, 0)
    return mean
