"""Kernel mean matching: weights that bring the source's mean in a kernel's space to the target's."""

from __future__ import annotations

from metatransfer.adapters.importance.importance_weights import Array, ImportanceWeights
from metatransfer.functional.domain import importance


class KernelMeanMatching(ImportanceWeights):
    r"""Kernel mean matching (Huang et al. 2006, NIPS 19) with a Gaussian kernel.

    The whole quadratic program is solved, to a gap that is known; the time is cubic and the memory quadratic in the
    number of source samples, 2,000 of which take seconds.

    Args:
        bandwidth: :math:`\sigma` of :math:`e^{-\lVert x-y\rVert^2/(2\sigma^2)}`; the median distance of the samples of
            both domains where ``None``.
        limit: no weight is above it.
        slack: how far the mean of the weights may be from 1 in the program; :math:`(\sqrt n-1)/\sqrt n` where
            ``None``. They are brought to mean 1 afterwards.
    """

    def __init__(self, bandwidth: float | None = None, limit: float = 1000.0, slack: float | None = None) -> None:
        self.bandwidth, self.limit, self.slack = bandwidth, limit, slack

    def find_weights(self, source: Array, target: Array) -> Array:
        """The solution of the program."""
        bandwidth = self._bandwidth(self.bandwidth, source, target)
        kernel = importance.gaussian_kernel(source, source, bandwidth)
        similarity = importance.gaussian_kernel(source, target, bandwidth).mean(1) * len(source)
        return importance.kernel_mean_matching(kernel, similarity, self.limit, self.slack)
