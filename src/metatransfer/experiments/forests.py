"""Random forests over tasks, by which methods are compared."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

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
    """One classifier for each pair, weighted by the difference of the scores."""

    def fit(self, x: Array, scores: Array) -> None:
        """Fits a classifier to each pair of which each method is better somewhere."""
        self.size, self.dimensions = scores.shape[1], x.shape[1]
        self.pairs: dict[tuple[int, int], RandomForestClassifier | float] = {}
        for a, b in itertools.combinations(range(self.size), 2):
            self.pairs[a, b] = self._fit_pair(x, scores[:, a] - scores[:, b])

    def _fit_pair(self, x: Array, difference: Array) -> "RandomForestClassifier | float":
        from sklearn.ensemble import RandomForestClassifier  # slow to import

        told = np.isfinite(difference) & (difference != 0)
        wins = difference[told] > 0
        if wins.all() or not wins.any():  # also without any task that tells
            return float(wins.mean()) if len(wins) else 0.5
        forest = RandomForestClassifier(self.num_trees, random_state=self.seed)
        return forest.fit(x[told], wins, sample_weight=np.abs(difference[told]))

    def votes(self, x: Array) -> Array:
        """Sums of the probabilities that a method wins against each other one."""
        found = np.zeros((len(x), self.size))
        for (a, b), forest in self.pairs.items():
            share = forest if isinstance(forest, float) else forest.predict_proba(x)[:, 1]
            found[:, a] += share
            found[:, b] += 1 - share
        return found

    def importances(self) -> Array:
        """Mean over the pairs; 0 if no pair needs a forest."""
        forests = [one for one in self.pairs.values() if not isinstance(one, float)]
        return _mean([one.feature_importances_ for one in forests] or [np.zeros(self.dimensions)])


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


class RankForest(Forests):
    """One regressor of all ranks together."""

    def fit(self, x: Array, scores: Array) -> None:
        """Fits the ranks, 1 for the worst method and equal ranks for equal scores."""
        self.forest = self._regressor().fit(x, rankdata(scores, axis=1))

    def votes(self, x: Array) -> Array:
        """The predicted ranks."""
        found: Array = self.forest.predict(x).reshape(len(x), -1)
        return found

    def importances(self) -> Array:
        """Those of the forest."""
        found: Array = self.forest.feature_importances_
        return found


FORESTS: dict[str, type[Forests]] = {
    "pairwise": PairwiseForests,
    "regression": ScoreForests,
    "ranking": RankForest,
}


def _mean(found: Sequence[Array]) -> Array:
    mean: Array = np.mean(found, 0)
    return mean
