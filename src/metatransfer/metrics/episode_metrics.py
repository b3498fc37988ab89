"""Means over episodes with 95% intervals."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from metatransfer.functional.intervals import estimate
from metatransfer.functional.losses import episode_losses, episode_scores, is_regression
from metatransfer.metrics.episode_calibration import EpisodeCalibration

# Apple's GPUs know no float64, and Lightning moves metrics there
_STATE_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class EpisodeMean(Metric):
    r"""Mean of a per-episode score with its 95% interval.

    .. math:: \bar a = \frac1n\sum_i a_i, \qquad
              h = t_{n-1}\,\sqrt{\frac{1}{n(n-1)}\sum_i (a_i-\bar a)^2}

    over the :math:`n` **episodes**, not over batches or predictions (Vinyals et al. 2016; Finn et al. 2017). The state
    is sums in float64, which merge exactly between processes.

    ``update`` takes per-episode scores of any shape; ``compute`` returns ``(mean, half_width, low, high)``. If
    ``update`` is told the number of answers that the scores are fractions of, the interval stays within [0, 1], see
    :func:`~metatransfer.functional.intervals.estimate`; else ``low`` and ``high`` are NaN. The half-width is NaN for
    fewer than two episodes.

    Example:
        >>> metric = EpisodeMean()
        >>> metric.update(torch.tensor([0.8, 1.0, 0.6, 0.8]))
        >>> [round(float(v), 4) for v in metric.compute()[:2]]
        [0.8, 0.2598]
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    count: Tensor
    total: Tensor
    total_of_squares: Tensor
    answers: Tensor

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - torchmetrics' own signature
        super().__init__(**kwargs)
        for name in ("count", "total", "total_of_squares", "answers"):
            self.add_state(name, torch.zeros((), dtype=_STATE_DTYPE), dist_reduce_fx="sum")

    def update(self, scores: Tensor, answers: int = 0) -> None:
        """Adds scores, one per episode, that are fractions of so many answers in all of them (0 if they are not)."""
        scores = scores.detach().to(self.total.dtype)
        self.count += scores.numel()
        self.total += scores.sum()
        self.total_of_squares += scores.square().sum()
        self.answers += answers

    def compute(self) -> tuple[Tensor, ...]:
        """``(mean, half_width, low, high)`` as scalars."""
        sums = torch.stack([self.count, self.total, self.total_of_squares, self.answers]).tolist()
        return tuple(torch.tensor(estimate(*sums), device=self.total.device).unbind())


def named(name: str, found: Sequence[Tensor]) -> dict[str, Tensor]:
    """Names a mean and its interval: ``<name>``, ``<name>_ci95`` (half its length) and its ends, if they are known."""
    ends = {} if found[2].isnan() else {f"{name}_low": found[2], f"{name}_high": found[3]}
    return {name: found[0], f"{name}_ci95": found[1], **ends}


class EpisodeMetrics(nn.Module):
    """Accuracy, loss and calibration error with their intervals over episodes.

    In regressions there is the mean squared error instead of accuracy and calibration error, and the log-likelihood of
    a target if the outputs are distributions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = EpisodeMean()
        self.loss = EpisodeMean()
        self.more: MutableMapping[str, EpisodeMean] = nn.ModuleDict()  # type: ignore[assignment]
        self.number = SumMetric()
        self.calibration, self.likelihood = EpisodeCalibration(), EpisodeMean()
        self.score_name = "accuracy"

    def update(self, outputs: Any, targets: Tensor, scores: Tensor | None = None, losses: Tensor | None = None) -> None:  # noqa: ANN401
        """Adds ``T`` episodes.

        Args:
            outputs: ``(T, Q, C)`` logits or ``(T, Q, D)`` values; of any kind if scores and losses are given.
            targets: ``(T, Q)`` or ``(T, Q, D)``.
            scores: ``(T,)``; by default computed from logits or values.
            losses: ``(T,)``; by default computed from logits or values.
        """
        outputs = outputs.detach().float() if isinstance(outputs, Tensor) else outputs
        answers = 0 if is_regression(targets) else targets.numel()
        self.score.update(episode_scores(outputs, targets) if scores is None else scores, answers)
        self.loss.update(episode_losses(outputs, targets) if losses is None else losses)
        self.number.update(len(targets))
        if is_regression(targets):
            self.score_name = "mse"
            if callable(getattr(outputs, "log_prob", None)):
                self.likelihood.update(outputs.log_prob(targets).flatten(1).mean(1))
        elif isinstance(outputs, Tensor):
            self.calibration.update(outputs.softmax(-1), targets)

    def update_more(self, scores: Mapping[str, Tensor]) -> None:
        """Adds further scores of episodes ``(T,)`` by name, always the same ones; NaN is left out."""
        for name, values in scores.items():
            if name not in self.more:
                self.more[name] = EpisodeMean().to(values.device)
            self.more[name].update(values[~values.isnan()])

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name, synchronised between processes; for those with intervals, see :func:`named`."""
        numbers = {"episodes": self.number.compute()}
        for name, metric in ((self.score_name, self.score), ("loss", self.loss)):
            numbers |= named(name, metric.compute())
        if self.calibration.update_called:
            numbers |= named("calibration_error", self.calibration.compute())
        if self.likelihood.update_called:
            numbers |= named("log_likelihood", self.likelihood.compute())
        for name, metric in self.more.items():
            if not (found := metric.compute())[0].isnan():
                numbers |= named(name, found)
        return numbers

    def reset(self) -> None:
        """Removes all episodes."""
        self.score_name = "accuracy"
        parts = (self.score, self.loss, self.number, self.calibration, self.likelihood)
        for metric in (*parts, *self.more.values()):
            metric.reset()
