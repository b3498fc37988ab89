"""Which method for a task: learned from the scores of methods on other tasks."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metatransfer.checks import check_choice, check_count, check_seed
from metatransfer.errors import UserError, explained
from metatransfer.experiments.forests import FORESTS, Forests, ScoreForests
from metatransfer.experiments.knowledge import Array, Knowledge, read_json, write_json

Kind = Literal["pairwise", "regression"]
_FAR = 0.95  # quantile of the distances of known tasks to their nearest neighbour
_TOLD = 3  # nearest tasks and features that are named
_FORMAT = 1


class RankedMethod(NamedTuple):
    """A method's place in a recommendation.

    Attributes:
        name: the method.
        score: expected score.
        uncertainty: standard deviation of the expected score over the trees, in the unit of the scores.
        votes: what the methods are ordered by: the expected lead over the other candidates, or the expected score, by
            the kind of selector; NaN for methods that are not candidates.
    """

    name: str
    score: float
    uncertainty: float
    votes: float


class Recommendation(NamedTuple):
    """The answer of a :class:`StrategySelector` for one task.

    Attributes:
        ranking: all methods, the best first.
        nearest: the nearest known tasks, each with its distance and the method that was best there.
        telling: the features that decided most, each with its importance, its value, and the share of known tasks with
            a smaller value.
        doubts: sentences on why the answer had better not be trusted; empty if nothing speaks against it.
    """

    ranking: tuple[RankedMethod, ...]
    nearest: tuple[tuple[str, float, str], ...]
    telling: tuple[tuple[str, float, float, float], ...]
    doubts: tuple[str, ...]


class StrategySelector:
    r"""Learns from stored results which method is best for a task.

    A meta-learner over a table of tasks (Rice 1976, *The algorithm selection problem*). Two kinds:

    - ``"pairwise"``: for each pair of candidates a forest predicts the difference of the scores, and the candidate with
      the largest mean difference to the others is recommended. What makes a task easy for both drops out of the
      differences (pairs as in Xu et al. 2011, *Hydra-MIP*, who classify which is better);
    - ``"regression"``: for each candidate a forest predicts the score.

    The candidates are the methods that are best on average over the known tasks. With few known tasks a method that
    won rarely cannot be recognised, and each further candidate costs more by mistakes than it gains.

    Missing features are replaced by the median of the known tasks; those of the task in question do not count as a
    reason and not in its distances. Missing scores are allowed.

    Args:
        kind: how the methods are compared.
        candidates: number of methods that may be recommended.
        num_trees: trees of each forest.
        seed: seed of the forests.

    Attributes:
        knowledge_: the table that it learned from.
        single_best_: the method with the best mean score, which is recommended if features are ignored.

    Raises:
        UserError: an argument is out of range.
    """

    knowledge_: Knowledge

    def __init__(self, kind: Kind = "pairwise", candidates: int = 8, num_trees: int = 200, seed: int = 0) -> None:
        check_choice("kind", kind, get_args(Kind))
        check_count(2, candidates=candidates)
        check_count(2, num_trees=num_trees)
        check_seed(seed=seed)
        self.kind, self.candidates, self.num_trees, self.seed = kind, candidates, num_trees, seed

    def fit(self, knowledge: Knowledge, available: Iterable[str] | None = None) -> Self:
        """Learns from a table of tasks.

        Args:
            knowledge: the table.
            available: what the data have of the needs in the table, see :meth:`Knowledge.usable`; by default all
                methods are learned.
        """
        self._whole = knowledge
        self.knowledge_ = knowledge = knowledge if available is None else knowledge.usable(available)
        means = np.nanmean(knowledge.scores - np.nanmean(knowledge.scores, 1, keepdims=True), 0)
        self._best_first = np.argsort(-means, kind="stable")
        self.single_best_ = knowledge.methods[self._best_first[0]]
        self._median = np.array([_median(column) for column in knowledge.values.T])
        self._filled = self._impute(knowledge.values)
        self._scale = _scale(self._filled)
        chosen = self._best_first[: self.candidates]
        self._chosen = chosen
        self._forests: Forests = FORESTS[self.kind](self.num_trees, self.seed)
        self._forests.fit(self._filled, knowledge.scores[:, chosen])
        self._regressors: ScoreForests | None = None
        return self

    def choose(self, values: ArrayLike) -> list[str]:
        """The recommended method for each of several tasks ``(N, F)``, without the expected scores and reasons."""
        x = self._impute(self._checked(np.atleast_2d(np.asarray(values, dtype=np.float64))))
        votes = self._forests.votes(x)
        return [self.knowledge_.methods[self._chosen[place]] for place in votes.argmax(1)]

    def predict(self, values: ArrayLike | Mapping[str, float]) -> Recommendation:
        """Recommends methods for one task.

        Args:
            values: ``(F,)`` task features in the order of the knowledge, or the values by name; NaN if not defined.

        Raises:
            UserError: the selector is not fitted, or a feature is missing or infinite, or all are NaN.
        """
        raw = self._checked(self._by_name(values))
        x, given = self._impute(raw), ~np.isnan(raw[0])
        if not given.any():
            raise UserError("all features of the task are NaN: give at least one.")
        known = self.knowledge_
        means, spreads = self._scores().mean_and_spread(x)
        votes = np.full(len(known.methods), np.nan)
        votes[self._chosen] = self._forests.votes(x)[0]
        rest = [place for place in np.argsort(-means, kind="stable") if place not in set(self._chosen.tolist())]
        order = [*self._chosen[np.argsort(-votes[self._chosen], kind="stable")], *rest]
        ranking = tuple(
            RankedMethod(known.methods[m], float(means[m]), float(spreads[m]), float(votes[m])) for m in order
        )
        return Recommendation(
            ranking, self._nearest(x, given), self._telling(x, given), self._doubts(x, given, order[0])
        )

    def save(self, path: str | Path) -> None:
        """Writes the settings and the knowledge as plain JSON; :meth:`load` learns from it again.

        All of the knowledge is written, also the methods that ``available`` left out.
        """
        self._check_fitted()
        settings = {name: getattr(self, name) for name in ("kind", "candidates", "num_trees", "seed")}
        write_json(path, {"format": _FORMAT, "settings": settings, "knowledge": self._whole.plain()})

    @classmethod
    def load(cls, path: str | Path, available: Iterable[str] | None = None) -> Self:
        """Reads a file of :meth:`save` and fits, which gives the same answers with the same version of scikit-learn.

        Args:
            path: the file.
            available: see :meth:`fit`.

        Raises:
            UserError: the file is missing or is not such a file.
        """
        content = read_json(path, "the knowledge")
        if content.get("format") != _FORMAT:
            raise UserError(
                f"the knowledge '{path}' has format {content.get('format')}, but this version reads {_FORMAT}: make it "
                "with StrategySelector.save."
            )
        problem, remedy = f"the knowledge '{path}' is damaged", "make it with StrategySelector.save"
        with explained(problem, remedy, AttributeError, KeyError, TypeError, ValueError):
            selector, knowledge = cls(**content["settings"]), Knowledge.from_plain(content["knowledge"])
        return selector.fit(knowledge, available)

    # ---- the task

    def _check_fitted(self) -> None:
        if not hasattr(self, "knowledge_"):
            raise UserError("this StrategySelector is not fitted: call fit or load first.")

    def _by_name(self, values: ArrayLike | Mapping[str, float]) -> Array:
        self._check_fitted()
        if isinstance(values, Mapping):
            missing = [name for name in self.knowledge_.features if name not in values]
            if missing:
                raise UserError(f"the task feature '{missing[0]}' is missing: give all that the knowledge has.")
            values = [values[name] for name in self.knowledge_.features]
        return np.asarray(values, dtype=np.float64)[None]

    def _checked(self, x: Array) -> Array:
        self._check_fitted()
        if x.ndim != 2 or x.shape[1] != len(self.knowledge_.features):
            raise UserError(f"a task needs {len(self.knowledge_.features)} features, but the shape is {x.shape}.")
        if np.isinf(x).any():
            raise UserError("a task feature is infinite: give NaN if it is not defined.")
        return x

    def _impute(self, x: Array) -> Array:
        return np.where(np.isnan(x), self._median, x)

    # ---- reasons and doubts

    def _scores(self) -> ScoreForests:
        """The forests of the expected scores, fitted once."""
        if self._regressors is None:
            self._regressors = ScoreForests(self.num_trees, self.seed)
            self._regressors.fit(self._filled, self.knowledge_.scores)
        return self._regressors

    def _distances(self, x: Array, given: NDArray[np.bool_]) -> Array:
        """``(T,)`` mean absolute differences to the known tasks, each feature in units of its interquartile range.

        Only of the features in the mask ``given``, so that none is invented.
        """
        found: Array = np.abs((_compress(self._filled) - _compress(x)) / self._scale)[:, given].mean(1)
        return found

    def _nearest(self, x: Array, given: NDArray[np.bool_]) -> tuple[tuple[str, float, str], ...]:
        known, distances = self.knowledge_, self._distances(x, given)
        best = np.nanargmax(known.scores, 1)
        places = np.argsort(distances, kind="stable")[:_TOLD]
        return tuple((known.tasks[t], float(distances[t]), known.methods[best[t]]) for t in places)

    def _telling(self, x: Array, given: NDArray[np.bool_]) -> tuple[tuple[str, float, float, float], ...]:
        known, weights = self.knowledge_, self._forests.importances()
        places = [place for place in np.argsort(-weights, kind="stable") if given[place]][:_TOLD]
        below = (self._filled < x).mean(0)
        return tuple((known.features[f], float(weights[f]), float(x[0, f]), float(below[f])) for f in places)

    def _doubts(self, x: Array, given: NDArray[np.bool_], first: int) -> tuple[str, ...]:
        return tuple(doubt for doubt in (self._far(x, given), self._no_gain(x, first)) if doubt)

    def _far(self, x: Array, given: NDArray[np.bool_]) -> str:
        pairs = np.array([self._distances(row[None], given) for row in self._filled])
        np.fill_diagonal(pairs, np.inf)
        usual = float(np.quantile(pairs.min(1), _FAR))
        nearest = float(self._distances(x, given).min())
        if nearest <= usual:
            return ""
        return (
            f"the task is far from every known one (distance {nearest:.2g}, while 95 % of the known tasks have a "
            f"neighbour within {usual:.2g})"
        )

    def _no_gain(self, x: Array, first: int) -> str:
        best = int(self._best_first[0])
        gain, spread = self._scores().difference(x, first, best)
        if first == best or gain >= spread:
            return ""
        return (
            f"the expected gain over {self.single_best_}, which is best on average, is {gain:.2g} and smaller than the "
            f"spread of the trees, {spread:.2g}"
        )


def _median(column: Array) -> float:
    """The median of what is not NaN, or 0."""
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else 0.0


def _compress(x: Array) -> Array:
    """Signed logarithm, as sizes and kurtoses span orders of magnitude."""
    found: Array = np.sign(x) * np.log1p(np.abs(x))
    return found


def _scale(x: Array) -> Array:
    """Interquartile range of each compressed feature; its standard deviation, or 1, if that is 0."""
    low, high = np.quantile(_compress(x), [0.25, 0.75], axis=0)
    spread = np.where(high > low, high - low, _compress(x).std(0))
    return np.where(spread > 0, spread, 1.0)
