"""Where inner loops diverge."""

from __future__ import annotations

import torch
from torch import Tensor

from metatransfer.functional.meta.update_rules import Params


def all_finite(params: Params) -> Tensor:
    """Whether no number is NaN or infinite: a boolean on the device, without waiting for it.

    Args:
        params: tensors of any shapes by name; checking the last parameters is enough, as NaN and infinity persist.
    """
    if not params:
        return torch.tensor(True)
    # the largest magnitude is NaN or infinite as soon as one number is
    return torch.isfinite(torch.nn.utils.get_total_norm(list(params.values()), norm_type=torch.inf))


def first_divergence(trajectory: list[Params]) -> tuple[int, int, str] | None:
    """The first step and task with a parameter that is not finite.

    Args:
        trajectory: of :func:`adapt_tasks`; each parameter ``(T, *shape)``.

    Returns:
        Step and task, counted from 0, and the name of the parameter; ``None`` if all are finite. The step is -1 if the
        parameters were not finite before the first step.
    """
    for step, params in enumerate(trajectory):
        for name, value in params.items():
            wrong = ~torch.isfinite(value).flatten(1).all(1)
            if wrong.any():
                return step - 1, int(wrong.int().argmax()), name
    return None
