"""Kernel mean matching."""

from __future__ import annotations

from metatransfer.adapters.domain.domain_adapter import Array
from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.functional.domain import importance


class KernelMeanMatching(ImportanceWeights):
    r"""Kernel mean matching (Huang et al. 2006, NIPS 19) with a Gaussian kernel.

    The weights bring the mean of the source in the kernel's feature space to that of the target. The quadratic program
    is solved exactly: time is cubic and memory quadratic in the number of source samples (seconds for 2,000).

    Args:
        bandwidth: :math:`\sigma` of :math:`e^{-\lVert x-y\rVert^2/(2\sigma^2)}`; defaults to the median distance
            between samples of both domains.
        limit: upper bound of the weights.
        slack: how far the mean of the weights may be from 1 in the program, before they are scaled to mean 1; defaults
            to :math:`(\sqrt n-1)/\sqrt n`.
    """

    def __init__(self, bandwidth: float | None = None, limit: float = 1000.0, slack: float | None = None) -> None:
        self.bandwidth, self.limit, self.slack = bandwidth, limit, slack

    def find_weights(self, source: Array, target: Array) -> Array:
        """The solution of the quadratic program."""
        bandwidth = self._bandwidth(self.bandwidth, source, target)
        kernel = importance.gaussian_kernel(source, source, bandwidth)
        similarity = importance.gaussian_kernel(source, target, bandwidth).mean(1) * len(source)
        return importance.kernel_mean_matching(kernel, similarity, self.limit, self.slack)
