"""Metrics of an evaluation over episodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassCalibrationError

from metatransfer.functional.losses import episode_losses, episode_scores, is_regression
from metatransfer.metrics.episode_mean import EpisodeMean


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
