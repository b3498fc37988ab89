"""Self-attention of sets."""

import math

import torch
from torch import Tensor, nn


class SetAttention(nn.Module):
    r"""One head of self-attention with a residual connection and layer normalisation, after FEAT (1812.03664).

    .. math:: A = \mathrm{softmax}\bigl(XW_q (XW_k)^\top / \sqrt E\bigr)\, XW_v, \qquad
              Y = \mathrm{LayerNorm}(X + AW_o)

    Permuting the members of a set permutes the outputs.

    Args:
        features: size :math:`E` of a member.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        self.output = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: Tensor, related: Tensor | None = None) -> Tensor:
        """Adapts the members of sets.

        Args:
            x: ``(T, N, E)``.
            related: ``(T, N, N)`` bool, which members attend to which; all to all if ``None``.

        Returns:
            ``(T, N, E)``.
        """
        # not by scaled_dot_product_attention, which torch.export cannot trace where the number of members follows from
        # the labels
        scores = self.query(x) @ self.key(x).mT / math.sqrt(x.shape[-1])
        if related is not None:
            scores = scores.masked_fill(~related, -torch.inf)
        found: Tensor = self.norm(x + self.output(scores.softmax(-1) @ self.value(x)))
        return found
