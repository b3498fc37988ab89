"""Metrics (``torchmetrics.Metric``), and validators that select a model without labels of the target."""

from metatransfer.metrics.classification import Answers, ClassifierMetrics, reliability
from metatransfer.metrics.episode_metrics import EpisodeMean, EpisodeMetrics
from metatransfer.metrics.validators import (
    DeepEmbeddedValidation,
    Entropy,
    Evidence,
    ImportanceWeightedValidation,
    InformationMaximization,
    SoftNeighborhoodDensity,
    SourceAccuracy,
    Validator,
)

__all__ = [
    "Answers",
    "ClassifierMetrics",
    "DeepEmbeddedValidation",
    "Entropy",
    "EpisodeMean",
    "EpisodeMetrics",
    "Evidence",
    "ImportanceWeightedValidation",
    "InformationMaximization",
    "SoftNeighborhoodDensity",
    "SourceAccuracy",
    "Validator",
    "reliability",
]
