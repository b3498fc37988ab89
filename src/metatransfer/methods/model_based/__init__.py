"""Model-based meta-learning: networks that produce the weights of a task."""

from metatransfer.methods.model_based.leo import LEOModule, LEOPenalties, LEOSteps
from metatransfer.methods.model_based.meta_net import MetaNetModule

__all__ = ["LEOModule", "LEOPenalties", "LEOSteps", "MetaNetModule"]
