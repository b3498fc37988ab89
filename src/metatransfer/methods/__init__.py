"""Methods as LightningModules: the bases, and one folder per family."""

from metatransfer.methods.base import EpisodicModule, MethodModule
from metatransfer.methods.gradient import (
    ANILModule,
    BOILModule,
    FOMAMLModule,
    InnerLoopModule,
    LearnedOptimizerModule,
    MAMLModule,
    MAMLPlusPlusModule,
    MetaSGDModule,
    ProtoMAMLModule,
    ReptileModule,
)
from metatransfer.methods.metric import ProtoNetModule
from metatransfer.methods.predictor import Predictor
from metatransfer.methods.supervised import PretrainModule

__all__ = [
    "ANILModule",
    "BOILModule",
    "EpisodicModule",
    "FOMAMLModule",
    "InnerLoopModule",
    "LearnedOptimizerModule",
    "MAMLModule",
    "MAMLPlusPlusModule",
    "MetaSGDModule",
    "MethodModule",
    "Predictor",
    "PretrainModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "ReptileModule",
]
