"""Rates that follow the progress of a run, from 0 at its first step to 1 at its last."""

from __future__ import annotations

import math
from typing import Any, Self

from metatransfer.arguments import remember_arguments
from metatransfer.checks import check_not_negative


class Annealing:
    r"""The learning rate of DANN: :math:`\mu_p = \mu_0\,(1 + \alpha p)^{-\beta}` (Ganin et al. 2016, 1505.07818).

    The progress :math:`p` is the part of the run's steps that are done; the rate changes with every step.

    Args:
        alpha: how fast it falls.
        beta: its power.

    Raises:
        UserError: a negative number.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Notes the arguments, so that checkpoints can name them."""
        self = super().__new__(cls)
        remember_arguments(self, args, kwargs)
        return self

    def __init__(self, alpha: float = 10.0, beta: float = 0.75) -> None:
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def factor(self, progress: float) -> float:
        """What the initial rate is multiplied by.

        Args:
            progress: from 0 to 1.

        Returns:
            At most 1.
        """
        return float((1 + self.alpha * progress) ** -self.beta)

    def __repr__(self) -> str:
        return f"Annealing(alpha={self.alpha}, beta={self.beta})"


def ramp(progress: float, gamma: float) -> float:
    r"""The strength of an adversary over a run: :math:`2/(1+e^{-\gamma p}) - 1` (Ganin et al. 2016, 1505.07818).

    Args:
        progress: :math:`p`, from 0 to 1.
        gamma: how fast it rises.

    Returns:
        0 at the start, nearly 1 at the end.
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1
