"""Calibration error over episodes with its interval."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metatransfer.functional.intervals import student

_BINS = 15


class EpisodeCalibration(Metric):
    r"""Expected calibration error over the pooled queries of all episodes, with its 95% interval over episodes.

    .. math:: \text{ECE} = \frac1N \sum_b \Big|\sum_{i\in b} \big([\hat y_i = y_i] - p_i\big)\Big|

    over 15 bins of the largest probability :math:`p_i` (Guo et al. 2017, 1706.04599). Queries of an episode share a
    support set and are not independent, so that the interval is :math:`t_{n-1}` times the jackknife's standard error
    over the ``n`` episodes (Efron, Stein 1981, "The jackknife estimate of variance"): the error is computed again
    without each of them. The state is 16 numbers for each episode.

    ``compute`` returns ``(error, half_width, low, high)`` within [0, 1]; all but the error are NaN for fewer than two
    episodes.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    sums: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Adds ``T`` episodes: probabilities ``(T, Q, C)`` of the classes, and labels ``(T, Q)``."""
        confidence, chosen = probabilities.detach().max(-1)
        gap = (chosen == targets).to(confidence.dtype) - confidence
        place = (confidence * _BINS).nan_to_num().long().clamp(0, _BINS - 1)
        sums = gap.new_zeros(len(targets), _BINS + 1).scatter_add_(1, place, gap)
        sums[:, -1] = targets.shape[1]
        self.sums.append(sums)

    def compute(self) -> tuple[Tensor, ...]:
        """``(error, half_width, low, high)`` as scalars."""
        sums = dim_zero_cat(self.sums).cpu().double()
        total, number = sums.sum(0), len(sums)
        error = _error(total)
        without = _error(total - sums) if number > 1 else error.expand(number)
        spread = (without - without.mean()).square().sum() * (number - 1) / number
        half = student(number) * spread.sqrt()
        low, high = ((error + sign * half).clamp(0, 1) if number > 1 else torch.tensor(math.nan) for sign in (-1, 1))
        return tuple(one.to(self.device) for one in (error.float(), half.float(), low.float(), high.float()))


def _error(sums: Tensor) -> Tensor:
    """The error from sums of differences by bin, and the number of queries, ``(..., bins + 1)``."""
    return sums[..., :-1].abs().sum(-1) / sums[..., -1]
