"""Pure functions on tensors: no Lightning, no state."""

from metatransfer.functional import meta
from metatransfer.functional.losses import (
    episode_loss,
    episode_losses,
    episode_scores,
    is_regression,
    mask_absent_classes,
)
from metatransfer.functional.meta import *
from metatransfer.functional.random import (
    random_permutations,
    random_subsets,
    random_uniforms,
    random_words,
    stream_keys,
)

__all__ = [
    "episode_loss",
    "episode_losses",
    "episode_scores",
    "is_regression",
    "mask_absent_classes",
    "random_permutations",
    "random_subsets",
    "random_uniforms",
    "random_words",
    "stream_keys",
]
__all__ += meta.__all__
