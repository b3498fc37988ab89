"""Selecting and checking a state of an adapted classifier without labels of the target."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from metatransfer.arguments import RemembersArguments, as_call
from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.domain import validation
from metatransfer.functional.domain.distance import collapse_signs
from metatransfer.metrics.collector import Evidence

__all__ = [
    "DeepEmbeddedValidation", "Entropy", "Evidence", "ImportanceWeightedValidation", "InformationMaximization",
    "SoftNeighborhoodDensity", "SourceAccuracy", "Validator",
]  # fmt: skip


class Validator(RemembersArguments, nn.Module, ABC):
    """Scores a state of an adapted classifier. It has no weights; as a module, it can be described in checkpoints.

    Args:
        source_floor: a state is not selected if its accuracy on the source is below this fraction of the best so far.

    Attributes:
        name: what it measures.
        higher_is_better: direction of :meth:`value`.

    Raises:
        UserError: ``source_floor`` outside [0, 1).
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __init__(self, source_floor: float = 0.0) -> None:
        super().__init__()
        check_fraction(source_floor=source_floor)
        self.source_floor = source_floor

    @abstractmethod
    def value(self, evidence: Evidence) -> float:
        """The value as defined in the literature."""

    def score(self, evidence: Evidence) -> float:
        """The score to maximise: :meth:`value`, negated if lower is better; minus infinity if a number is not finite.

        Raises:
            UserError: a domain without validation samples.
        """
        if not len(evidence.source_logits) or not len(evidence.target_logits):
            raise UserError(
                f"{type(self).__name__} needs validation samples of both domains, but got "
                f"{len(evidence.source_logits)} of the source and {len(evidence.target_logits)} of the target: give "
                "both a validation split."
            )
        if not evidence.finite():
            return -math.inf
        value = self.value(evidence.on_cpu())
        if not math.isfinite(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def allows(self, source_accuracy: float, best_source_accuracy: float) -> bool:
        """Whether a state may be selected: its source accuracy is not too far below the best so far."""
        return source_accuracy >= self.source_floor * best_source_accuracy

    def prefers(self, adapted: float, plain: float) -> bool:
        """Whether an adapted classifier's :meth:`score` is at least that of a classifier trained on the source only."""
        return adapted >= plain

    def protocol(self) -> str:
        """The validator and its arguments, as text."""
        return as_call(self)


class Entropy(Validator):
    """Mean entropy of the predictions for the target; rewards confidence, whether right or wrong."""

    name = "entropy"
    higher_is_better = False

    def value(self, evidence: Evidence) -> float:
        """See :func:`~metatransfer.functional.domain.validation.mean_entropy`."""
        return float(validation.mean_entropy(evidence.target_logits))


class InformationMaximization(Validator):
    """Confident predictions that use all classes (as a validator: Musgrave et al. 2022, 2208.07360)."""

    name = "information maximization"
    higher_is_better = True

    def value(self, evidence: Evidence) -> float:
        """See :func:`~metatransfer.functional.domain.validation.information_maximization`."""
        return float(validation.information_maximization(evidence.target_logits))


class SoftNeighborhoodDensity(Validator):
    """Density of the predictions for the target (Saito et al. 2021, 2108.10860).

    It is highest if all predictions collapse into one class: use it with a ``source_floor``.

    Args:
        source_floor: see :class:`Validator`.
        temperature: temperature of the similarities.
        limit: largest number of samples used; always the same subset.

    Raises:
        UserError: a number is not positive.
    """

    name = "soft neighborhood density"
    higher_is_better = True

    def __init__(self, source_floor: float = 0.0, temperature: float = 0.05, limit: int = 2000) -> None:
        super().__init__(source_floor)
        check_positive(temperature=temperature, limit=limit)
        self.temperature, self.limit = temperature, limit

    def value(self, evidence: Evidence) -> float:
        """See :func:`~metatransfer.functional.domain.validation.soft_neighborhood_density`; 0 for a single sample."""
        logits = evidence.target_logits[_chosen(len(evidence.target_logits), self.limit)]
        if len(logits) < 2:
            return 0.0
        return float(validation.soft_neighborhood_density(logits.softmax(-1), self.temperature))


class ImportanceWeightedValidation(Validator):
    """The error on the target, estimated by weighted errors on the source (IWCV, Sugiyama et al. 2007, JMLR).

    Args:
        source_floor: see :class:`Validator`.
        regularization: of :func:`~metatransfer.functional.domain.validation.density_ratio`.
        limit: largest number of samples used of each domain; always the same subset.

    Raises:
        UserError: a number is not positive.
    """

    name = "importance-weighted error"
    higher_is_better = False

    def __init__(self, source_floor: float = 0.0, regularization: float | None = None, limit: int = 2000) -> None:
        super().__init__(source_floor)
        check_positive(regularization=regularization, limit=limit)
        self.regularization, self.limit = regularization, limit

    def value(self, evidence: Evidence) -> float:
        """See :func:`~metatransfer.functional.domain.validation.importance_weighted_risk`."""
        return float(validation.importance_weighted_risk(*self.errors_and_weights(evidence)))

    def errors_and_weights(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Errors (0 or 1) of the source's validation samples and their weights, both ``(N,)`` float64."""
        train = evidence.source_features if evidence.train_features is None else evidence.train_features
        target, mine = evidence.target_features, _chosen(len(evidence.source_logits), self.limit)
        train, target = (x[_chosen(len(x), self.limit)].flatten(1) for x in (train, target))
        wrong = evidence.source_logits[mine].argmax(-1) != evidence.source_labels[mine]
        strength = self.regularization
        if strength is None and min(len(train), len(target)) < 2:
            strength = 1.0  # too few to choose by
        mine_x = evidence.source_features[mine].flatten(1)
        return wrong.double(), validation.density_ratio(train, target, mine_x, strength)


class DeepEmbeddedValidation(ImportanceWeightedValidation):
    """:class:`ImportanceWeightedValidation` with a control variate for less variance (DEV, You et al. 2019, ICML)."""

    name = "deep embedded validation"

    def value(self, evidence: Evidence) -> float:
        """See :func:`~metatransfer.functional.domain.validation.deep_embedded_validation`."""
        return float(validation.deep_embedded_validation(*self.errors_and_weights(evidence)))


class SourceAccuracy(Validator):
    """Accuracy on the source's validation samples, which adaptation should preserve.

    Args:
        source_floor: see :class:`Validator`.
        tolerance: loss of accuracy up to which an adapted classifier is still preferred.

    Raises:
        UserError: ``tolerance`` outside [0, 1).
    """

    name = "source accuracy"
    higher_is_better = True

    def __init__(self, source_floor: float = 0.0, tolerance: float = 0.1) -> None:
        super().__init__(source_floor)
        check_fraction(tolerance=tolerance)
        self.tolerance = tolerance

    def value(self, evidence: Evidence) -> float:
        """Fraction of correct predictions."""
        return float((evidence.source_logits.argmax(-1) == evidence.source_labels).double().mean())

    def prefers(self, adapted: float, plain: float) -> bool:
        """Whether the loss of accuracy is within the tolerance."""
        return adapted >= plain - self.tolerance - 1e-9


def _chosen(count: int, limit: int) -> Tensor:
    """At most ``limit`` indices below ``count``, always the same ones."""
    return validation.fixed_order(count)[:limit].sort().values


# from cheap to expensive, and last the accuracy on the source
PANEL: tuple[Validator, ...] = (
    Entropy(), InformationMaximization(), SoftNeighborhoodDensity(), ImportanceWeightedValidation(),
    DeepEmbeddedValidation(), SourceAccuracy(),
)  # fmt: skip


class Vote(NamedTuple):
    """The values of one validator (NaN if outputs are not finite), and whether it prefers the adapted classifier."""

    adapted: float
    plain: float
    adapted_better: bool


class PanelVerdict(NamedTuple):
    """The verdict of several validators.

    Attributes:
        votes: by name of the validator.
        hurts: whether most prefer the classifier trained on the source only, or the adapted one has collapsed.
        sentence: the verdict in words.
    """

    votes: dict[str, Vote]
    hurts: bool
    sentence: str


def panel_verdict(adapted: Evidence, plain: Evidence, panel: tuple[Validator, ...] = PANEL) -> PanelVerdict:
    """Asks several validators whether adaptation helped or hurt.

    The verdict is a hint, not a measurement, which would need labels of the target. Three validators reward confidence,
    which adaptation raises whether it is right or wrong; two use weighted errors on the source, which are unreliable if
    the domains hardly overlap. A collapse into few classes decides by itself, see
    :func:`~metatransfer.functional.domain.distance.collapse_signs`.
    """
    votes = {one.name: _vote(one, one.score(adapted), one.score(plain)) for one in panel}
    against = [name for name, vote in votes.items() if not vote.adapted_better]
    mine, other = (collapse_signs(one.target_logits).get("concentrated") for one in (adapted, plain))
    if mine is not None and other is None:
        return PanelVerdict(votes, True, f"adaptation seems to hurt: {mine}")
    hurts = 2 * len(against) > len(votes)
    return PanelVerdict(votes, hurts, _in_words(against, len(votes), hurts))


def _in_words(against: list[str], count: int, hurts: bool) -> str:
    if hurts:
        return (
            f"adaptation seems to hurt: {len(against)} of {count} measures that need no label of the target prefer the "
            f"model of the source alone ({', '.join(against)}); use that one, or lower max_lambda."
        )
    if not against:
        return f"no sign that adaptation hurts: none of {count} measures prefers the model of the source alone."
    return (
        f"no majority says that adaptation hurts: {count - len(against)} of {count} measures that need no label of the "
        f"target prefer the adapted model, or see no difference; against it: {', '.join(against)}."
    )


def _vote(validator: Validator, adapted: float, plain: float) -> Vote:
    sign = 1.0 if validator.higher_is_better else -1.0
    mine, other = (sign * score if math.isfinite(score) else math.nan for score in (adapted, plain))
    return Vote(mine, other, validator.prefers(adapted, plain))
