"""The Kullback-Leibler importance estimation procedure."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state

from metatransfer.adapters.domain.domain_adapter import Array
from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance

MULTIPLES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 1.5, 2.0)


class KLIEP(ImportanceWeights):
    r"""Kullback-Leibler Importance Estimation Procedure (Sugiyama et al. 2008, NIPS 20).

    The density ratio is a sum of Gaussian kernels at target samples. Their bandwidth is chosen by cross-validation of
    the target's likelihood.

    Args:
        bandwidth: :math:`\sigma`; if omitted, chosen from 0.1 to 2 times the median distance between samples.
        centers: number of kernels, at randomly drawn target samples.
        folds: number of folds of the cross-validation.
        random_state: seed of centers and folds.

    Attributes:
        bandwidth_: the bandwidth.
        centers_: ``(L, d)`` centers of the kernels.
        alpha_: ``(L,)`` weights of the kernels.
    """

    def __init__(
        self, bandwidth: float | None = None, centers: int = 100, folds: int = 5, random_state: int | None = 0
    ) -> None:
        self.bandwidth, self.centers, self.folds, self.random_state = bandwidth, centers, folds, random_state

    def find_weights(self, source: Array, target: Array) -> Array:
        """The density ratio of the source samples.

        Raises:
            UserError: fewer than two centers or folds.
        """
        if self.centers < 2 or self.folds < 2:
            raise UserError(
                f"KLIEP needs 2 centers and 2 folds or more, but got centers={self.centers} and folds={self.folds}."
            )
        generator = check_random_state(self.random_state)
        self.bandwidth_ = self._bandwidth(self.bandwidth, source, target)
        order = generator.permutation(len(target))
        centers = order[: self.centers]
        self.centers_ = target[centers]
        if self.bandwidth is None:
            fold = np.empty(len(target), np.int64)
            fold[order] = np.arange(len(target)) % self.folds  # every fold has some of the centers
            candidates = [multiple * self.bandwidth_ for multiple in MULTIPLES]
            self.bandwidth_ = importance.kliep_bandwidth(source, target, centers, candidates, fold)
        mine, other = (importance.gaussian_kernel(x, self.centers_, self.bandwidth_) for x in (source, target))
        self.alpha_ = importance.kliep(mine, other)
        return importance.kliep_weights(mine, self.alpha_)
