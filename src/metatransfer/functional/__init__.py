"""Pure functions on tensors: no Lightning, no state."""

from metatransfer.functional.losses import episode_loss, episode_losses, episode_scores, is_regression
from metatransfer.functional.meta.batch_norm import batch_norm
from metatransfer.functional.meta.batching import (
    Batching,
    check_batching,
    choose_batching,
    known_gradients,
    mean_over_parts,
    over_tasks,
)
from metatransfer.functional.meta.divergence import all_finite, first_divergence
from metatransfer.functional.meta.inner_loop import Adaptation, adapt_tasks, inner_loop
from metatransfer.functional.meta.prototypes import (
    class_prototypes,
    cosine_scores,
    nearest_neighbor,
    prototype_scores,
    squared_euclidean_scores,
)
from metatransfer.functional.meta.stateless import BatchNormPolicy, batch_norm_layers, stateless
from metatransfer.functional.meta.threads import in_threads
from metatransfer.functional.meta.update_rules import Params, PlainRule, UpdateRule, adam, clip_norm, momentum, sgd
from metatransfer.functional.random import (
    random_permutations,
    random_subsets,
    random_uniforms,
    random_words,
    stream_keys,
)

__all__ = [
    "Adaptation",
    "BatchNormPolicy",
    "Batching",
    "Params",
    "PlainRule",
    "UpdateRule",
    "adam",
    "adapt_tasks",
    "all_finite",
    "batch_norm",
    "batch_norm_layers",
    "check_batching",
    "choose_batching",
    "class_prototypes",
    "clip_norm",
    "cosine_scores",
    "episode_loss",
    "episode_losses",
    "episode_scores",
    "first_divergence",
    "in_threads",
    "inner_loop",
    "is_regression",
    "known_gradients",
    "mean_over_parts",
    "momentum",
    "nearest_neighbor",
    "over_tasks",
    "prototype_scores",
    "random_permutations",
    "random_subsets",
    "random_uniforms",
    "random_words",
    "sgd",
    "squared_euclidean_scores",
    "stateless",
    "stream_keys",
]
