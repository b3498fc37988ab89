"""Metrics (``torchmetrics.Metric``), and validators that select a model without labels of the target."""

from metatransfer.metrics import validators
from metatransfer.metrics.classification import Answers, ClassifierMetrics, reliability
from metatransfer.metrics.episode_metrics import EpisodeMean, EpisodeMetrics
from metatransfer.metrics.validators import *

__all__ = ["Answers", "ClassifierMetrics", "EpisodeMean", "EpisodeMetrics", "reliability"]
__all__ += validators.__all__
