"""Heads: from features to logits or regressed values."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_fraction, check_positive

__all__ = ["CosineHead", "Head", "LinearHead", "PerceptronHead"]


class Head(nn.Module, ABC):
    """Maps features ``(N, in_features)`` to outputs ``(N, out_features)``.

    Args:
        in_features: size of the features.
        out_features: number of classes, or size of a regression target.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``."""


class LinearHead(Head):
    """A linear layer with the initialisation of ``torch.nn.Linear``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``."""
        outputs: Tensor = self.linear(features)
        return outputs


class CosineHead(Head):
    r"""Scaled cosine similarity :math:`s \cdot \cos(f, w_k)` (Gidaris and Komodakis 2018, 1804.09458).

    Args:
        in_features: see :class:`Head`.
        out_features: see :class:`Head`.
        scale: initial value of the learned scale ``s``.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 10.0) -> None:
        super().__init__(in_features, out_features)
        self.initial_scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new class weights and resets the scale."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.constant_(self.scale, self.initial_scale)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class PerceptronHead(Head):
    """A multilayer perceptron, such as the label predictor of DANN (Ganin et al. 2016, 1505.07818).

    Args:
        in_features: size of the features.
        out_features: number of classes, or size of a regression target.
        hidden_sizes: sizes of the hidden layers, each followed by ReLU and dropout.
        dropout: dropout probability of hidden units.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden_sizes: Sequence[int] = (100, 100), dropout: float = 0.0
    ) -> None:
        super().__init__(in_features, out_features)
        self.layers = perceptron(in_features, hidden_sizes, out_features, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``."""
        outputs: Tensor = self.layers(features)
        return outputs


def perceptron(in_features: int, hidden_sizes: Sequence[int], out_features: int, dropout: float) -> nn.Sequential:
    """Hidden layers with ReLU and dropout, and a linear output layer."""
    check_positive(**{f"hidden_sizes[{place}]": size for place, size in enumerate(hidden_sizes)})
    check_fraction(dropout=dropout)
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(in_features, size), nn.ReLU(), nn.Dropout(dropout)]
        in_features = size
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))
