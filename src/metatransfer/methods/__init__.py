"""Methods as LightningModules: the bases, and one folder per family."""

from metatransfer.methods.base import EpisodicModule, MethodModule
from metatransfer.methods.classical import TfidfSVMModule
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.domain import (
    AdaBNModule,
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
    SourceOnlyModule,
)
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
from metatransfer.methods.gradient.maml_plus_plus import OuterSchedule
from metatransfer.methods.metric import ProtoNetModule
from metatransfer.methods.options import Execution, InnerLoop
from metatransfer.methods.predictor import Predictor
from metatransfer.methods.supervised import PretrainModule

__all__ = [
    "L2SP",
    "ADDAModule",
    "ANILModule",
    "AdaBNModule",
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
    "Execution",
    "FOMAMLModule",
    "FineTuneModule",
    "FineTunePolicy",
    "FrozenFeaturesModule",
    "Full",
    "GradualUnfreezing",
    "HeadOnly",
    "ImportanceWeightedModule",
    "InnerLoop",
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
    "OuterSchedule",
    "Predictor",
    "PretrainModule",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "ReptileModule",
    "SourceOnlyModule",
    "TfidfSVMModule",
]
