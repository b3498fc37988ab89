"""Subspace classifiers: a method that is defined outside of the package."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer import Backbone, EpisodicModule, UserError


class SubspaceModule(EpisodicModule[Tensor]):
    r"""Classifies a query by its distance to the subspace that the support samples of each class span.

    After Simon et al. 2020 (Adaptive Subspaces for Few-Shot Learning), without subtracting the class means, so that one
    sample spans a line. For embeddings :math:`f` of length 1 and an orthonormal basis :math:`B_k` of the subspace of
    class ``k``, the squared distance is :math:`1 - \lVert B_k f(x)\rVert^2`, which gives the logits

    .. math:: z_k = s\,\lVert B_k f(x)\rVert^2.

    Args:
        backbone: the embedding ``f``.
        scale: the factor ``s``. With ``s = 1`` the softmax of the logits is almost uniform.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the scheduler from the optimiser; no scheduler by default.

    Raises:
        UserError: ``scale`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if scale <= 0:
            raise UserError(f"scale must be positive, but is {scale}.")
        self.backbone = backbone
        self.scale = scale

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``(T, N, E)`` of length 1, of samples ``(T, N, *shape)``."""
        return F.normalize(self.backbone(x.flatten(0, 1)), dim=-1).unflatten(0, x.shape[:2])

    def fit_tasks(self, support_x: Tensor, support_y: Tensor) -> Tensor:
        """The bases ``(T, W, S, E)``; rows of other classes are 0."""
        members = F.one_hot(support_y, int(support_y.max()) + 1).transpose(1, 2)  # (T, W, S)
        rows = members.unsqueeze(-1) * self.embed(support_x).unsqueeze(1)
        # L^-1 X has orthonormal rows if L L^T = X X^T; the diagonal makes it work for equal samples and rows of 0
        gram = rows @ rows.mT + 1e-3 * torch.eye(rows.shape[2], device=rows.device, dtype=rows.dtype)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(gram), rows, upper=False)

    def predict_tasks(self, state: Tensor, query_x: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``: the squared length of the projection onto each subspace."""
        projected = torch.einsum("twse,tqe->tqws", state, self.embed(query_x))
        return self.scale * projected.square().sum(-1)

    def protocol(self) -> dict[str, Any]:
        """Adds the scale and the BatchNorm statistics of evaluation to the protocol card."""
        return super().protocol() | {"scale": self.scale, "batch_norm": "running"}
