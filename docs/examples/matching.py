"""Matching networks: a method that is defined outside of the package."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer import Backbone, EpisodicModule, UserError
from metatransfer.functional import cosine_scores


class Memory(NamedTuple):
    """What the method keeps of the support sets of ``T`` tasks.

    Attributes:
        embeddings: ``(T, S, E)``.
        members: ``(T, W, S)`` bool, whether a support sample belongs to a class.
    """

    embeddings: Tensor
    members: Tensor


class MatchingModule(EpisodicModule[Memory]):
    r"""Matching networks without full context embeddings (Vinyals et al. 2016, 1606.04080).

    The probability of a class is the attention of the query to the support samples of that class. The attention is a
    softmax over cosine similarities of embeddings:

    .. math:: P(k \mid x) = \sum_{i:\, y_i = k} a_i(x), \qquad a(x) = \mathrm{softmax}_i\; s\cos(f(x), f(x_i)).

    Args:
        backbone: the embedding ``f``.
        scale: the factor ``s``. With ``s = 1`` the softmax of cosines is almost uniform.
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
        """Embeddings ``(T, N, E)`` of samples ``(T, N, *shape)``."""
        return self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def fit_tasks(self, support_x: Tensor, support_y: Tensor) -> Memory:
        """Embeds the support sets and records the class of each sample."""
        members = F.one_hot(support_y, int(support_y.max()) + 1).transpose(1, 2).bool()
        return Memory(self.embed(support_x), members)

    def predict_tasks(self, state: Memory, query_x: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``: their softmax is the sum of the attention over the samples of each class."""
        similarity = self.scale * cosine_scores(self.embed(query_x), state.embeddings)
        of_class = similarity.unsqueeze(2).masked_fill(~state.members.unsqueeze(1), -torch.inf)
        return of_class.logsumexp(-1)

    def protocol(self) -> dict[str, Any]:
        """Adds the scale and the BatchNorm statistics of evaluation to the protocol card."""
        return super().protocol() | {"scale": self.scale, "batch_norm": "running"}
