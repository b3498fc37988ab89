"""Samples of two domains as arrays, or one sentence that says what is wrong with which."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data

from metatransfer.errors import UserError

Array = NDArray[np.float64]


def check_domains(estimator: BaseEstimator, source: ArrayLike, target: ArrayLike | None) -> tuple[Array, Array]:
    """Both domains in double precision; without a target the source stands for it.

    Warns of features that are constant in one domain only: no linear map brings such a feature of the other to it.

    Args:
        estimator: that is fitted; it remembers the number and names of the features.
        source: ``(n, d)``.
        target: ``(m, d)``.

    Returns:
        Source and target.

    Raises:
        UserError: fewer than two samples, NaN, infinity, or different numbers of features.
    """
    mine: Array = validate_data(estimator, source, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=0)
    _check_samples(mine, "source")
    if target is None:
        return mine, mine
    other: Array = check_array(
        target, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=0, input_name="target"
    )
    _check_samples(other, "target")
    if other.shape[1] != mine.shape[1]:
        raise UserError(
            f"the source has {mine.shape[1]} features, but the target {other.shape[1]}: give both domains the same "
            "features, in the same order."
        )
    _warn_of_constant_features(mine, other)
    return mine, other


def _check_samples(x: Array, name: str) -> None:
    if len(x) < 2:
        raise UserError(
            f"the {name} has {len(x)} sample{'' if len(x) == 1 else 's'}, but at least 2 are needed: give more samples "
            f"of the {name}."
        )
    if not np.isfinite(x).all():
        wrong = np.flatnonzero(~np.isfinite(x).all(1))
        raise UserError(
            f"the {name} contains NaN or infinity in {len(wrong)} of {len(x)} samples, the first of them number "
            f"{wrong[0]}: clean or impute them."
        )


def _warn_of_constant_features(source: Array, target: Array) -> None:
    mine, other = ((x == x[0]).all(0) for x in (source, target))
    for name, varying, constant in (("source", "target", mine & ~other), ("target", "source", other & ~mine)):
        if constant.any():
            numbers = np.flatnonzero(constant)
            listed = ", ".join(map(str, numbers[:5])) + (" and more" if len(numbers) > 5 else "")
            warnings.warn(
                f"the {name} does not vary in {len(numbers)} of {len(constant)} features ({listed}), but the {varying} "
                "does: take them out of both domains unless they are meant to differ.",
                stacklevel=4,
            )
