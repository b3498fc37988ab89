"""Fine-tuning of pretrained networks."""

from metatransfer.methods.finetune.finetune import FineTuneModule
from metatransfer.methods.finetune.policies import (
    L2SP,
    FineTunePolicy,
    Full,
    GradualUnfreezing,
    HeadOnly,
    LastLayers,
    LayerwiseLRDecay,
    LayerwiseTransfer,
)

__all__ = [
    "L2SP",
    "FineTuneModule",
    "FineTunePolicy",
    "Full",
    "GradualUnfreezing",
    "HeadOnly",
    "LastLayers",
    "LayerwiseLRDecay",
    "LayerwiseTransfer",
]
