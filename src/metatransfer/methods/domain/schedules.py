"""Schedules over the progress of a run, from 0 at its first step to 1 at its last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metatransfer.arguments import RemembersArguments
from metatransfer.checks import check_not_negative


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


RAMP = Ramp()
