"""Comparisons: distances between tasks, and recommendations from results on other tasks."""

from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.selector import RankedMethod, Recommendation, StrategySelector
from metatransfer.experiments.similarity import MEASURES, Measure, ProbedTask, distances

__all__ = ["MEASURES", "Knowledge", "Measure", "ProbedTask", "RankedMethod", "Recommendation", "StrategySelector"]
__all__ += ["distances"]
