"""Functions of meta-learning: inner loops, prototypes, networks as pure functions."""

from metatransfer.functional.meta.batch_norm import batch_norm
from metatransfer.functional.meta.batching import (
    Batching,
    choose_batching,
    known_gradients,
    mean_over_parts,
    over_tasks,
)
from metatransfer.functional.meta.compiled import CompiledLoss
from metatransfer.functional.meta.inner_loop import (
    InnerLoopResult,
    adapt_tasks,
    all_finite,
    first_divergence,
    inner_loop,
)
from metatransfer.functional.meta.inputs import as_precise, concatenated, sample_axes
from metatransfer.functional.meta.prototypes import (
    Distance,
    class_prototypes,
    cosine_scores,
    nearest_neighbor,
    prototype_scores,
    squared_euclidean_scores,
)
from metatransfer.functional.meta.replicas import replica
from metatransfer.functional.meta.stateless import BatchNormPolicy, Forward, batch_norm_layers, stateless
from metatransfer.functional.meta.threads import in_threads
from metatransfer.functional.meta.update_rules import (
    Params,
    PlainRule,
    RuleState,
    UpdateRule,
    adam,
    clip_norm,
    momentum,
    sgd,
)

__all__ = [
    "BatchNormPolicy",
    "Batching",
    "CompiledLoss",
    "Distance",
    "Forward",
    "InnerLoopResult",
    "Params",
    "PlainRule",
    "RuleState",
    "UpdateRule",
    "adam",
    "adapt_tasks",
    "all_finite",
    "as_precise",
    "batch_norm",
    "batch_norm_layers",
    "choose_batching",
    "class_prototypes",
    "clip_norm",
    "concatenated",
    "cosine_scores",
    "first_divergence",
    "in_threads",
    "inner_loop",
    "known_gradients",
    "mean_over_parts",
    "momentum",
    "nearest_neighbor",
    "over_tasks",
    "prototype_scores",
    "replica",
    "sample_axes",
    "sgd",
    "squared_euclidean_scores",
    "stateless",
]
