"""Means over episodes with 95% intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassCalibrationError

from metatransfer.functional.losses import episode_losses, episode_scores, is_regression

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


class EpisodeMetrics(nn.Module):
    """Accuracy (or mean squared error) and loss with their intervals over episodes, and the calibration error.

    The calibration error is that of Guo et al. 2017 (1706.04599) over the pooled queries of all episodes, 15 bins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = EpisodeMean()
        self.loss = EpisodeMean()
        self.number = SumMetric()
        # it only bins the largest probability, so the number of classes may change from episode to episode
        self.calibration = MulticlassCalibrationError(num_classes=2, n_bins=15, validate_args=False)
        self.score_name = "accuracy"

    def update(
        self,
        outputs: Any,  # noqa: ANN401
        targets: Tensor,
        scores: Tensor | None = None,
        losses: Tensor | None = None,
    ) -> None:
        """Adds ``T`` episodes.

        Args:
            outputs: ``(T, Q, C)`` logits or ``(T, Q, D)`` values; of any kind if scores and losses are given.
            targets: ``(T, Q)`` or ``(T, Q, D)``.
            scores: ``(T,)``; by default computed from logits or values.
            losses: ``(T,)``; by default computed from logits or values.
        """
        outputs = outputs.detach().float() if isinstance(outputs, Tensor) else outputs
        self.score.update(episode_scores(outputs, targets) if scores is None else scores)
        self.loss.update(episode_losses(outputs, targets) if losses is None else losses)
        self.number.update(len(targets))
        if is_regression(targets):
            self.score_name = "mse"
        elif isinstance(outputs, Tensor):
            self.calibration.update(outputs.softmax(-1).flatten(0, 1), targets.flatten())

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name, synchronised between processes; ``<name>_ci95`` is the half-width of an interval."""
        numbers = {"episodes": self.number.compute()}
        for name, metric in ((self.score_name, self.score), ("loss", self.loss)):
            numbers[name], numbers[f"{name}_ci95"] = metric.compute()
        if self.calibration.update_called:
            numbers["calibration_error"] = self.calibration.compute()
        return numbers

    def reset(self) -> None:
        """Removes all episodes."""
        self.score_name = "accuracy"
        for metric in (self.score, self.loss, self.number, self.calibration):
            metric.reset()
