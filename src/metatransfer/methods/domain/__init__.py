"""Domain adaptation: training on labelled samples of a source and unlabelled samples of a target."""

from metatransfer.methods.domain.adabn import AdaBNModule
from metatransfer.methods.domain.adaptation import Adaptation, Annealing, Pair, Ramp
from metatransfer.methods.domain.adapted_features import AdaptedFeaturesModule
from metatransfer.methods.domain.adda import ADDAModule
from metatransfer.methods.domain.alternating import AlternatingModule
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.methods.domain.cdan import CDANModule
from metatransfer.methods.domain.dan import DANModule
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.methods.domain.deep_coral import DeepCORALModule
from metatransfer.methods.domain.importance_weighted import ImportanceWeightedModule
from metatransfer.methods.domain.mcd import MCDModule
from metatransfer.methods.domain.source_only import SourceOnlyModule

__all__ = [
    "ADDAModule", "AdaBNModule", "Adaptation", "AdaptedFeaturesModule", "AlternatingModule", "Annealing",
    "CDANModule", "DANModule", "DANNModule", "DeepCORALModule", "DomainAdaptationModule",
    "ImportanceWeightedModule", "MCDModule", "Pair", "Ramp", "SourceOnlyModule",
]  # fmt: skip
