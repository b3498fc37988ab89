"""Gradient-based meta-learning."""

from metatransfer.methods.gradient.anil import ANILModule
from metatransfer.methods.gradient.boil import BOILModule
from metatransfer.methods.gradient.fomaml import FOMAMLModule
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.gradient.meta_sgd import MetaSGDModule

__all__ = [
    "ANILModule",
    "BOILModule",
    "FOMAMLModule",
    "MAMLModule",
    "MetaSGDModule",
]
