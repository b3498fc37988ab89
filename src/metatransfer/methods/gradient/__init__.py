"""Gradient-based meta-learning."""

from metatransfer.methods.gradient.amortized_variational import AmortizedVariationalModule, Variational
from metatransfer.methods.gradient.anil import ANILModule
from metatransfer.methods.gradient.base import InnerLoopModule
from metatransfer.methods.gradient.boil import BOILModule
from metatransfer.methods.gradient.fomaml import FOMAMLModule
from metatransfer.methods.gradient.imaml import IMAMLModule, ImplicitSolver
from metatransfer.methods.gradient.learned_optimizer import LearnedOptimizerModule
from metatransfer.methods.gradient.lstm_meta_learner import LSTMMetaLearnerModule
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.gradient.maml_plus_plus import MAMLPlusPlusModule, OuterSchedule
from metatransfer.methods.gradient.meta_sgd import MetaSGDModule
from metatransfer.methods.gradient.proto_maml import ProtoMAMLModule
from metatransfer.methods.gradient.reptile import ReptileModule

__all__ = [
    "ANILModule",
    "AmortizedVariationalModule",
    "BOILModule",
    "FOMAMLModule",
    "IMAMLModule",
    "ImplicitSolver",
    "InnerLoopModule",
    "LSTMMetaLearnerModule",
    "LearnedOptimizerModule",
    "MAMLModule",
    "MAMLPlusPlusModule",
    "MetaSGDModule",
    "OuterSchedule",
    "ProtoMAMLModule",
    "ReptileModule",
    "Variational",
]
