"""Gradient-based meta-learning."""

from metatransfer.methods.gradient.maml import MAMLModule

__all__ = ["MAMLModule"]
