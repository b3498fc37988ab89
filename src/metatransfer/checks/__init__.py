"""Validators of user input: the only place that words errors about numbers, batches, weights and paths."""

from metatransfer.checks.batches import (
    check_batch_kind,
    check_episode,
    check_episode_shape,
    check_finite,
    check_float_samples,
    check_labelled_batch,
    check_support,
)
from metatransfer.checks.paths import check_file, check_folder, check_writable
from metatransfer.checks.values import (
    check_choice,
    check_fraction,
    check_monitor,
    check_not_negative,
    check_positive,
    check_seed,
    check_state_dict,
    did_you_mean,
)

__all__ = [
    "check_batch_kind",
    "check_choice",
    "check_episode",
    "check_episode_shape",
    "check_file",
    "check_finite",
    "check_float_samples",
    "check_folder",
    "check_fraction",
    "check_labelled_batch",
    "check_monitor",
    "check_not_negative",
    "check_positive",
    "check_seed",
    "check_state_dict",
    "check_support",
    "check_writable",
    "did_you_mean",
]
