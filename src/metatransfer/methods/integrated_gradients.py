"""Integrated gradients by captum (extra ``explain``)."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from metatransfer.errors import UserError

_STEPS = 64
_AT_ONCE = 16


class Attributions(NamedTuple):
    """Integrated gradients of one sample.

    Attributes:
        values: of its shape; they sum to the difference of the answers for the sample and the baseline, up to ``gap``.
        gap: what the sum misses, because the integral is a sum over 64 points.
    """

    values: Tensor
    gap: float


def integrated_gradients(
    answer: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, one_by_one: bool
) -> Attributions:
    r"""Attributions :math:`(x - b)\int_0^1 \nabla f(b + t(x - b))\,dt` (Sundararajan et al. 2017, 1703.01365).

    Args:
        answer: values ``(N,)`` of samples ``(N, *shape)``.
        x: one sample ``(1, *shape)``.
        baseline: :math:`b`, of the same shape.
        one_by_one: whether the answer for a sample depends on the others, so that points are computed one by one.

    Raises:
        UserError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UserError(
            "integrated gradients need the package captum: install the extra, pip install 'metatransfer[explain]', or "
            "use attribution='grad_cam'."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about points that are computed one by one
        values, gap = IntegratedGradients(answer).attribute(
            x, baseline, n_steps=_STEPS, internal_batch_size=1 if one_by_one else _AT_ONCE,
            return_convergence_delta=True,
        )  # fmt: skip
    return Attributions(values.detach()[0].cpu(), float(gap))
