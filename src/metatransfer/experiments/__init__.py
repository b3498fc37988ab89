"""Comparisons: distances between tasks, recommendations from results on other tasks, and what a training changed."""

from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.layer_changes import CarriedOver, LayerChange, carried_over
from metatransfer.experiments.selector import RankedMethod, Recommendation, StrategySelector
from metatransfer.experiments.similarity import MEASURES, Measure, ProbedTask, distances

__all__ = ["MEASURES", "Knowledge", "Measure", "ProbedTask", "RankedMethod", "Recommendation", "StrategySelector"]
__all__ += ["CarriedOver", "LayerChange", "carried_over", "distances"]
