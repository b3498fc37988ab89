"""Pure functions on tensors: no Lightning, no state."""

from metatransfer.functional.inner_loop import Batching, Params, UpdateRule, inner_loop, over_tasks, sgd
from metatransfer.functional.losses import episode_loss, episode_losses, episode_scores, is_regression
from metatransfer.functional.prototypes import (
    class_prototypes,
    cosine_scores,
    nearest_neighbor,
    squared_euclidean_scores,
)
from metatransfer.functional.random import (
    random_permutations,
    random_subsets,
    random_uniforms,
    random_words,
    stream_keys,
)
from metatransfer.functional.stateless import BatchNormPolicy, batch_norm_layers, stateless

__all__ = [
    "BatchNormPolicy",
    "Batching",
    "Params",
    "UpdateRule",
    "batch_norm_layers",
    "class_prototypes",
    "cosine_scores",
    "episode_loss",
    "episode_losses",
    "episode_scores",
    "inner_loop",
    "is_regression",
    "nearest_neighbor",
    "over_tasks",
    "random_permutations",
    "random_subsets",
    "random_uniforms",
    "random_words",
    "sgd",
    "squared_euclidean_scores",
    "stateless",
    "stream_keys",
]
