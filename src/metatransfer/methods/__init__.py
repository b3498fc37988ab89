"""Methods as LightningModules: the bases, and one folder per family.

A family exports its classes in its own ``__init__``; here and in ``metatransfer`` they appear by themselves.
"""

from metatransfer.methods import (
    classical,
    domain,
    evaluation,
    features,
    finetune,
    gradient,
    in_context,
    memory,
    metric,
    model_based,
    probabilistic,
    supervised,
)
from metatransfer.methods.base import MethodModule, load
from metatransfer.methods.classical import *
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.domain import *
from metatransfer.methods.embedding import EmbeddingModule, OrderedModule
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.evaluation import *
from metatransfer.methods.explain import Explanation
from metatransfer.methods.export import export_module
from metatransfer.methods.exported_file import Exported
from metatransfer.methods.features import *
from metatransfer.methods.finetune import *
from metatransfer.methods.gradient import *
from metatransfer.methods.in_context import *
from metatransfer.methods.memory import *
from metatransfer.methods.metric import *
from metatransfer.methods.model_based import *
from metatransfer.methods.options import Execution, InnerLoop
from metatransfer.methods.predictor import Predictor
from metatransfer.methods.probabilistic import *
from metatransfer.methods.saved_predictor import load_predictor
from metatransfer.methods.supervised import *

__all__ = ["ClassifierModule", "EmbeddingModule", "EpisodicModule", "Execution", "Explanation", "Exported"]
__all__ += ["InnerLoop", "MethodModule", "OrderedModule", "Predictor", "export_module", "load", "load_predictor"]
__all__ += classical.__all__
__all__ += domain.__all__
__all__ += evaluation.__all__
__all__ += features.__all__
__all__ += finetune.__all__
__all__ += gradient.__all__
__all__ += in_context.__all__
__all__ += memory.__all__
__all__ += metric.__all__
__all__ += model_based.__all__
__all__ += probabilistic.__all__
__all__ += supervised.__all__
