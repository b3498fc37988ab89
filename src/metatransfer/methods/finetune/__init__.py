"""Fine-tuning of pretrained networks."""

from metatransfer.methods.finetune import policies
from metatransfer.methods.finetune.finetune import FineTuneModule
from metatransfer.methods.finetune.policies import *

__all__ = ["FineTuneModule"]
__all__ += policies.__all__
