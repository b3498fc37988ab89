"""Parts of adversarial domain adaptation: discriminator, gradient reversal, multilinear map."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from metatransfer.checks import check_positive
from metatransfer.nn.heads import perceptron

LARGEST_EXACT_MAP = 4096
"""Larger outer products are replaced by a random map, as in CDAN (1705.10667)."""


class DomainDiscriminator(nn.Module):
    """A multilayer perceptron that predicts whether features come from the source or from the target.

    DANN uses one hidden layer of 100 units on MNIST, and two of 1024 on larger images (Ganin et al. 2016, 1505.07818).

    Args:
        in_features: size of the features.
        hidden_sizes: sizes of the hidden layers, each followed by ReLU and dropout.
        dropout: dropout probability of hidden units.
    """

    def __init__(self, in_features: int, hidden_sizes: Sequence[int] = (100,), dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(in_features=in_features)
        self.network = perceptron(in_features, hidden_sizes, 1, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N,)`` of features ``(N, in_features)``; positive values stand for the source."""
        outputs: Tensor = self.network(features)
        return outputs.squeeze(-1)


class _Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:  # noqa: ANN401
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:  # noqa: ANN401
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    r"""The identity with a reversed gradient: :math:`R(x) = x`, :math:`\partial R/\partial x = -\lambda I`.

    Ganin et al. 2016 (1505.07818). Layers after it minimise the loss, layers before it maximise :math:`\lambda` times
    the loss.

    Args:
        x: float tensor of any shape.
        strength: :math:`\lambda`.
    """
    found: Tensor = _Reversed.apply(x, strength) if torch.is_grad_enabled() else x
    return found


class MultilinearMap(nn.Module):
    r"""The input of a discriminator that is conditioned on predictions (Long et al. 2018, 1705.10667).

    .. math:: T_\otimes(f, g) = f \otimes g, \qquad
              T_\odot(f, g) = \frac{1}{\sqrt d}\,(R_f f) \odot (R_g g)

    The random map :math:`T_\odot` replaces outer products of more than 4096 numbers and approximates their inner
    products. Its matrices have standard normal entries, are not trained, and are saved with the weights.

    Args:
        in_features: size :math:`E` of the features.
        num_classes: number of classes :math:`C`.
        random_features: size :math:`d` of the random map.

    Attributes:
        out_features: :math:`EC`, or :math:`d` for the random map.
    """

    feature_matrix: Tensor | None
    class_matrix: Tensor | None

    def __init__(self, in_features: int, num_classes: int, random_features: int = 1024) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, random_features=random_features)
        exact = in_features * num_classes <= LARGEST_EXACT_MAP
        self.out_features = in_features * num_classes if exact else random_features
        self.register_buffer("feature_matrix", None if exact else torch.empty(random_features, in_features))
        self.register_buffer("class_matrix", None if exact else torch.empty(random_features, num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new random matrices."""
        for matrix in (self.feature_matrix, self.class_matrix):
            if matrix is not None:
                nn.init.normal_(matrix)

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Features ``(N, E)`` and probabilities ``(N, C)`` to ``(N, out_features)``."""
        if self.feature_matrix is None or self.class_matrix is None:
            return (features.unsqueeze(2) * probabilities.unsqueeze(1)).flatten(1)
        product = F.linear(features, self.feature_matrix) * F.linear(probabilities, self.class_matrix)
        return product / math.sqrt(self.out_features)
