"""Means over episodes with 95% intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

# Apple's GPUs know no float64, and Lightning moves metrics there
_STATE_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class EpisodeMean(Metric):
    r"""Mean of a per-episode score and the half-width of its 95% interval.

    .. math:: \bar a = \frac1n\sum_i a_i, \qquad
              h = 1.96\,\sqrt{\frac{1}{n(n-1)}\sum_i (a_i-\bar a)^2}

    over the :math:`n` **episodes**, not over batches or predictions (Vinyals et al. 2016; Finn et al. 2017). The state
    is three sums in float64, which merge exactly between processes.

    ``update`` takes per-episode scores of any shape; ``compute`` returns ``(mean, half_width)``. The half-width is NaN
    for fewer than two episodes.

    Example:
        >>> metric = EpisodeMean()
        >>> metric.update(torch.tensor([0.8, 1.0, 0.6, 0.8]))
        >>> [round(float(v), 4) for v in metric.compute()]
        [0.8, 0.16]
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    count: Tensor
    total: Tensor
    total_of_squares: Tensor

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - torchmetrics' own signature
        super().__init__(**kwargs)
        for name in ("count", "total", "total_of_squares"):
            self.add_state(name, torch.zeros((), dtype=_STATE_DTYPE), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Adds scores, one per episode, of any shape."""
        scores = scores.detach().to(self.total.dtype)
        self.count += scores.numel()
        self.total += scores.sum()
        self.total_of_squares += scores.square().sum()

    def compute(self) -> tuple[Tensor, Tensor]:
        """``(mean, half_width)`` as scalars."""
        mean = self.total / self.count
        spread = (self.total_of_squares - self.count * mean.square()).clamp(min=0)
        half_width = 1.96 * (spread / (self.count - 1) / self.count).sqrt()
        return mean.float(), torch.where(self.count > 1, half_width, torch.nan).float()
