"""Ridge regression of many tasks in closed form."""

import torch
from torch import Tensor

from metatransfer.errors import UserError

__all__ = ["ridge_weights"]


def ridge_weights(x: Tensor, y: Tensor, penalty: float | Tensor) -> Tensor:
    r"""Weights of the linear regression with the smallest penalised error, without an intercept.

    .. math:: W = \arg\min_W \lVert XW - Y\rVert^2 + \lambda\lVert W\rVert^2
                = (X^\top X + \lambda I)^{-1} X^\top Y = X^\top (XX^\top + \lambda I)^{-1} Y

    Bertinetto et al. 2019 (1805.08136), Eq. 3 and 5: the smaller of the two systems is solved, by a Cholesky
    factorisation, for all tasks at once. Computed in float32 or better, also under autocast. Differentiable with
    respect to all arguments.

    Args:
        x: samples ``(T, S, E)``.
        y: targets ``(T, S, D)``.
        penalty: :math:`\lambda`, positive; 0 is allowed where the system is not singular.

    Returns:
        ``(T, E, D)``.

    Raises:
        UserError: the system of a task is singular in the precision of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(wide), y.to(wide)
        few = x.shape[1] <= x.shape[2]
        system = x @ x.mT if few else x.mT @ x
        identity = torch.eye(system.shape[-1], dtype=wide, device=x.device)
        factor = _factor(system + penalty * identity)
        right = y if few else x.mT @ y
        solution: Tensor = torch.cholesky_solve(right, factor)
        return x.mT @ solution if few else solution


def _factor(system: Tensor) -> Tensor:
    """The Cholesky factors of systems ``(T, N, N)``; NaN and infinity are passed on."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(system)
    with torch.no_grad():
        # in exact arithmetic a pivot of a singular system is 0; what remains of it is rounding
        smallest = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
        rounding = system.shape[-1] * torch.finfo(system.dtype).eps * system.diagonal(dim1=-2, dim2=-1).amax(-1)
        singular = ((failed != 0) | (smallest <= rounding)) & torch.isfinite(system).all(-1).all(-1)
        if singular.any():  # one synchronisation with the device, as checking the factorisation needs anyway
            raise UserError(
                "the ridge system of a task is singular, as its samples are linearly dependent (repeated samples, for "
                "example) and the penalty is too small for them: use a larger penalty."
            )
    return factor
