"""Fine-tuning of pretrained networks."""

from metatransfer.methods.finetune import adapters, partial, policies
from metatransfer.methods.finetune.adapters import *
from metatransfer.methods.finetune.finetune import FineTuneModule
from metatransfer.methods.finetune.partial import *
from metatransfer.methods.finetune.policies import *

__all__ = ["FineTuneModule"]
__all__ += adapters.__all__
__all__ += partial.__all__
__all__ += policies.__all__
