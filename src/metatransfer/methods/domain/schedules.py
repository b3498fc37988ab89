"""Rates that follow the progress of a run, from 0 at its first step to 1 at its last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metatransfer.arguments import RemembersArguments
from metatransfer.checks import check_not_negative


class Annealing(RemembersArguments):
    r"""The learning rate of DANN: :math:`\mu_p = \mu_0\,(1 + \alpha p)^{-\beta}` (Ganin et al. 2016, 1505.07818).

    The progress :math:`p` is the part of the run's steps that are done; the rate changes with every step.

    Args:
        alpha: how fast it falls.
        beta: its power.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, alpha: float = 10.0, beta: float = 0.75) -> None:
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def factor(self, progress: float) -> float:
        """The factor of the initial rate when a part of the run, from 0 to 1, is done."""
        return float((1 + self.alpha * progress) ** -self.beta)

    def __repr__(self) -> str:
        return f"Annealing(alpha={self.alpha}, beta={self.beta})"


@dataclass(frozen=True)
class Ramp:
    r"""The strength of an adversary: :math:`\lambda\,(2/(1+e^{-\gamma p}) - 1)` (Ganin et al. 2016, 1505.07818).

    Attributes:
        max_lambda: :math:`\lambda`, the strength at the end.
        gamma: how fast it rises.

    Raises:
        UserError: a negative number.
    """

    max_lambda: float = 1.0
    gamma: float = 10.0

    def __post_init__(self) -> None:
        check_not_negative(max_lambda=self.max_lambda, gamma=self.gamma)

    def at(self, progress: float) -> float:
        """The strength when a part of the run, from 0 to 1, is done: 0 at the start."""
        return self.max_lambda * (2 / (1 + math.exp(-self.gamma * progress)) - 1)


RAMP = Ramp()
