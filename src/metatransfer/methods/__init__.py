"""Methods as LightningModules: the bases, and one folder per family."""

from metatransfer.methods.base import EpisodicModule, MethodModule
from metatransfer.methods.gradient import MAMLModule
from metatransfer.methods.metric import ProtoNetModule
from metatransfer.methods.predictor import Predictor

__all__ = ["EpisodicModule", "MAMLModule", "MethodModule", "Predictor", "ProtoNetModule"]
