"""Probabilistic meta-learning: distributions over the weights of a task."""

from metatransfer.methods.probabilistic.versa import VersaModule

__all__ = ["VersaModule"]
