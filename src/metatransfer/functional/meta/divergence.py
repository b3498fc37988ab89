"""Detection of inner loops that diverge."""

from __future__ import annotations

import torch
from torch import Tensor

from metatransfer.functional.meta.update_rules import Params


def all_finite(params: Params) -> Tensor:
    """Whether no parameter is NaN or infinite, as a boolean tensor on the device (no synchronisation)."""
    if not params:
        return torch.tensor(True)
    # the largest magnitude is NaN or infinite as soon as one number is
    return torch.isfinite(torch.nn.utils.get_total_norm(list(params.values()), norm_type=torch.inf))


def first_divergence(trajectory: list[Params]) -> tuple[int, int, str] | None:
    """Finds the first inner step and task with a parameter that is not finite.

    Args:
        trajectory: parameters ``(T, *shape)`` before and after each step, see :func:`adapt_tasks`.

    Returns:
        Step (-1 for the initial parameters), task and name of the parameter; ``None`` if all are finite.
    """
    for step, params in enumerate(trajectory):
        for name, value in params.items():
            wrong = ~torch.isfinite(value).flatten(1).all(1)
            if wrong.any():
                return step - 1, int(wrong.int().argmax()), name
    return None
