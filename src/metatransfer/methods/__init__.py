"""Methods as LightningModules: the bases, and one folder per family."""

from metatransfer.methods.base import MethodModule
from metatransfer.methods.classical import TfidfSVMModule
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.domain import (
    AdaBNModule,
    Adaptation,
    AdaptedFeaturesModule,
    ADDAModule,
    Annealing,
    CDANModule,
    DANModule,
    DANNModule,
    DeepCORALModule,
    DomainAdaptationModule,
    ImportanceWeightedModule,
    MCDModule,
    Ramp,
    SourceOnlyModule,
)
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.evaluation import Evaluation, OnEpisodes, OnSamples, OnTarget
from metatransfer.methods.features import FrozenFeaturesModule
from metatransfer.methods.finetune import (
    L2SP,
    FineTuneModule,
    FineTunePolicy,
    Full,
    GradualUnfreezing,
    HeadOnly,
    LastLayers,
    LayerwiseLRDecay,
    LayerwiseTransfer,
)
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
    "L2SP",
    "ADDAModule",
    "ANILModule",
    "AdaBNModule",
    "Adaptation",
    "AdaptedFeaturesModule",
    "Annealing",
    "BOILModule",
    "CDANModule",
    "ClassifierModule",
    "DANModule",
    "DANNModule",
    "DeepCORALModule",
    "DomainAdaptationModule",
    "EpisodicModule",
    "Evaluation",
    "FOMAMLModule",
    "FineTuneModule",
    "FineTunePolicy",
    "FrozenFeaturesModule",
    "Full",
    "GradualUnfreezing",
    "HeadOnly",
    "ImportanceWeightedModule",
    "InnerLoopModule",
    "LastLayers",
    "LayerwiseLRDecay",
    "LayerwiseTransfer",
    "LearnedOptimizerModule",
    "MAMLModule",
    "MAMLPlusPlusModule",
    "MCDModule",
    "MetaSGDModule",
    "MethodModule",
    "OnEpisodes",
    "OnSamples",
    "OnTarget",
    "Predictor",
    "PretrainModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "Ramp",
    "ReptileModule",
    "SourceOnlyModule",
    "TfidfSVMModule",
]
