"""What adaptation methods share: arguments, schedules over the progress of a run, and the outputs for a batch."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from metatransfer.arguments import RemembersArguments
from metatransfer.batches import DomainBatch
from metatransfer.checks import check_choice, check_not_negative
from metatransfer.metrics.validators import Validator

Normalization = Literal["joint", "separate", "domain_specific", "adabn"]


class Annealing(RemembersArguments):
    r"""The learning rate of DANN: :math:`\mu_p = \mu_0\,(1 + \alpha p)^{-\beta}` (Ganin et al. 2016, 1505.07818).

    :math:`p` is the fraction of the run's steps done so far; the rate changes with every step.

    Args:
        alpha: speed of the decay.
        beta: exponent of the decay.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, alpha: float = 10.0, beta: float = 0.75) -> None:
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def factor(self, progress: float) -> float:
        """The factor of the initial rate at a progress from 0 to 1."""
        return float((1 + self.alpha * progress) ** -self.beta)

    def __repr__(self) -> str:
        return f"Annealing(alpha={self.alpha}, beta={self.beta})"


@dataclass(frozen=True)
class Ramp:
    r"""The strength of an adversary: :math:`\lambda\,(2/(1+e^{-\gamma p}) - 1)` (Ganin et al. 2016, 1505.07818).

    Attributes:
        max_lambda: :math:`\lambda`, the limit of the strength.
        gamma: speed of the rise.

    Raises:
        UserError: a negative number.
    """

    max_lambda: float = 1.0
    gamma: float = 10.0

    def __post_init__(self) -> None:
        check_not_negative(max_lambda=self.max_lambda, gamma=self.gamma)

    def at(self, progress: float) -> float:
        """The strength at a progress from 0 to 1; 0 at the start."""
        return self.max_lambda * (2 / (1 + math.exp(-self.gamma * progress)) - 1)


@dataclass(frozen=True)
class Adaptation:
    """Arguments shared by all adaptation methods: BatchNorm across domains, selection without labels, learning rate.

    Attributes:
        normalization: BatchNorm statistics in training: ``"joint"`` over both domains, ``"separate"`` by domain with
            common running statistics, ``"domain_specific"`` layers (1906.03950), or ``"adabn"``, common scales and
            shifts with statistics estimated from all samples of the target (1603.04779). Defaults to that of the
            method.
        validator: selects the best state of a run; defaults to ``InformationMaximization``.
        annealing: learning rate of each step by the progress of the run, instead of an ``lr_scheduler``.

    Raises:
        UserError: unknown ``normalization``.
    """

    normalization: Normalization | None = None
    validator: Validator | None = None
    annealing: Annealing | None = None

    def __post_init__(self) -> None:
        if self.normalization is not None:
            check_choice("normalization", self.normalization, get_args(Normalization))


class Pair(NamedTuple):
    """Outputs of a network for a training batch.

    Attributes:
        source: ``(N, E)`` features.
        target: ``(M, E)`` features.
        source_logits: ``(N, C)``.
        target_logits: ``(M, C)``.
        batch: the batch.
    """

    source: Tensor
    target: Tensor
    source_logits: Tensor
    target_logits: Tensor
    batch: DomainBatch


RAMP, DEFAULT = Ramp(), Adaptation()
