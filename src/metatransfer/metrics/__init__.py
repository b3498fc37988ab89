"""torchmetrics.Metric subclasses."""

from metatransfer.metrics.classification import Answers, ClassifierMetrics, reliability
from metatransfer.metrics.episode_mean import EpisodeMean
from metatransfer.metrics.episode_metrics import EpisodeMetrics

__all__ = ["Answers", "ClassifierMetrics", "EpisodeMean", "EpisodeMetrics", "reliability"]
