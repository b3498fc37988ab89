"""Layers for sequences whose positions depend on no later ones: dilated convolution and attention.

Every layer has two functions. ``forward`` computes all positions of sequences ``(N, S, C)``. ``following`` computes
what position ``S`` would be for each of ``Q`` alternative inputs ``(N, Q, C)``, without computing the sequence again:
that is how many queries, independent of each other, are asked after one support set.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CausalAttention", "CausalDense", "CausalLayer"]


class CausalLayer(nn.Module, ABC):
    """A layer of a causal network, which appends features to its input.

    Attributes:
        out_features: size of the output.
    """

    out_features: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``(N, S, C)`` to ``(N, S, out_features)``; position ``t`` depends on the positions up to ``t``."""

    @abstractmethod
    def following(self, past: Tensor, x: Tensor) -> Tensor:
        """Position ``S`` after ``past`` ``(N, S, C)`` for each of ``x`` ``(N, Q, C)``: ``(N, Q, out_features)``."""


class CausalDense(CausalLayer):
    r"""A dilated causal convolution of size two with a gate, whose output is appended to its input.

    .. math:: y_t = \bigl[x_t,\ \tanh(W_f[x_t, x_{t-d}] + b_f) \odot \sigma(W_g[x_t, x_{t-d}] + b_g)\bigr]

    The dense block of SNAIL (Mishra et al. 2018, 1707.03141), with zeros before the first position.

    Args:
        in_features: size ``C`` of the input.
        filters: number of features that are appended.
        dilation: the distance ``d``, in positions.
    """

    def __init__(self, in_features: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.gates = nn.Linear(2 * in_features, 2 * filters)
        self.out_features = in_features + filters

    def forward(self, x: Tensor) -> Tensor:
        """``(N, S, C)`` to ``(N, S, C + filters)``."""
        return self._appended(x, F.pad(x, (0, 0, self.dilation, 0))[:, : x.shape[1]])

    def following(self, past: Tensor, x: Tensor) -> Tensor:
        """The next position for each of ``x``."""
        place = past.shape[1] - self.dilation
        earlier = past[:, place : place + 1] if place >= 0 else torch.zeros_like(x[:, :1])
        return self._appended(x, earlier.expand_as(x))

    def _appended(self, x: Tensor, earlier: Tensor) -> Tensor:
        value, gate = self.gates(torch.cat([x, earlier], -1)).chunk(2, -1)
        return torch.cat([x, value.tanh() * gate.sigmoid()], -1)


class CausalAttention(CausalLayer):
    r"""Attention of each position to itself and all earlier ones, whose output is appended to the input.

    .. math:: y_t = \Bigl[x_t,\ \sum_{s \le t} a_{ts} v_s\Bigr], \qquad
              a_{t\cdot} = \mathrm{softmax}_{s \le t}\bigl(q_t^\top k_s / \sqrt{K}\bigr)

    with :math:`q, k, v` linear in :math:`x` (Vaswani et al. 2017, 1706.03762; Mishra et al. 2018, 1707.03141).

    Args:
        in_features: size ``C`` of the input.
        key_size: size ``K`` of the keys.
        value_size: size of the values, the number of features that are appended.
    """

    def __init__(self, in_features: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.sizes = [key_size, key_size, value_size]
        self.projections = nn.Linear(in_features, sum(self.sizes))
        self.out_features = in_features + value_size

    def forward(self, x: Tensor) -> Tensor:
        """``(N, S, C)`` to ``(N, S, C + value_size)``."""
        query, key, value = self.projections(x).split(self.sizes, -1)
        return torch.cat([x, F.scaled_dot_product_attention(query, key, value, is_causal=True)], -1)

    def following(self, past: Tensor, x: Tensor) -> Tensor:
        """The next position for each of ``x``, which attends to the past and to itself."""
        _, keys, values = self.projections(past).split(self.sizes, -1)
        query, key, value = self.projections(x).split(self.sizes, -1)
        scores = torch.cat([query @ keys.mT, (query * key).sum(-1, keepdim=True)], -1) / math.sqrt(self.sizes[0])
        weights = scores.softmax(-1)
        return torch.cat([x, weights[..., :-1] @ values + weights[..., -1:] * value], -1)
