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
from metatransfer.functional.representations import linear_cka, svcca
from metatransfer.functional.task_embedding import diagonal_fisher, task2vec, task2vec_distance
from metatransfer.functional.transferability import h_score, leep, log_me, nce, trans_rate

__all__ = [
    "diagonal_fisher",
    "episode_loss",
    "episode_losses",
    "episode_scores",
    "h_score",
    "is_regression",
    "leep",
    "linear_cka",
    "log_me",
    "mask_absent_classes",
    "nce",
    "random_permutations",
    "random_subsets",
    "random_uniforms",
    "random_words",
    "stream_keys",
    "svcca",
    "task2vec",
    "task2vec_distance",
    "trans_rate",
]
__all__ += meta.__all__
