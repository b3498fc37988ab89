"""KLIEP: a density ratio under which the target is most likely."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state

from metatransfer.adapters.importance.importance_weights import Array, ImportanceWeights
from metatransfer.errors import UserError
from metatransfer.functional.domain import importance

MULTIPLES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 1.5, 2.0)


class KLIEP(ImportanceWeights):
    r"""Kullback-Leibler Importance Estimation Procedure (Sugiyama et al. 2008, NIPS 20).

    The ratio is a sum of Gaussian kernels at samples of the target. Their bandwidth is the one under which target
    samples that are held out are most likely.

    Args:
        bandwidth: :math:`\sigma`; where ``None``, the best of 0.1 to 2 times the median distance of the samples of
            both domains.
        centers: kernels, at target samples drawn at random; all of them where there are fewer.
        folds: parts in which target samples are held out, where the bandwidth is to be found.
        random_state: of the centers and parts.

    Attributes:
        bandwidth_: the bandwidth.
        centers_: ``(L, d)`` where the kernels stand.
        alpha_: ``(L,)`` their weights.
    """

    def __init__(
        self, bandwidth: float | None = None, centers: int = 100, folds: int = 5, random_state: int | None = 0
    ) -> None:
        self.bandwidth, self.centers, self.folds, self.random_state = bandwidth, centers, folds, random_state

    def find_weights(self, source: Array, target: Array) -> Array:
        """The density ratio of the source's samples.

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
            fold[order] = np.arange(len(target)) % self.folds  # neighbours in the order, so that centers fall in all
            candidates = [multiple * self.bandwidth_ for multiple in MULTIPLES]
            self.bandwidth_ = importance.kliep_bandwidth(source, target, centers, candidates, fold)
        mine, other = (importance.gaussian_kernel(x, self.centers_, self.bandwidth_) for x in (source, target))
        self.alpha_ = importance.kliep(mine, other)
        return importance.kliep_weights(mine, self.alpha_)
