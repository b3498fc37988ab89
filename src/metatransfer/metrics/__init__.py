"""torchmetrics.Metric subclasses."""

from metatransfer.metrics.episode_mean import EpisodeMean
from metatransfer.metrics.episode_metrics import EpisodeMetrics

__all__ = ["EpisodeMean", "EpisodeMetrics"]
