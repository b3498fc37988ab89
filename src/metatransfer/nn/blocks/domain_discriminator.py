"""Networks that distinguish domains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.nn.heads import perceptron


class DomainDiscriminator(nn.Module):
    """A multilayer perceptron that predicts whether features come from the source or from the target.

    DANN uses one hidden layer of 100 units on MNIST, and two of 1024 on larger images (Ganin et al. 2016, 1505.07818).

    Args:
        in_features: size of the features.
        hidden_sizes: sizes of the hidden layers, each followed by ReLU and dropout.
        dropout: dropout probability of hidden units.

    Raises:
        UserError: a size is below 1, or the probability is outside [0, 1).
    """

    def __init__(self, in_features: int, hidden_sizes: Sequence[int] = (100,), dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(in_features=in_features)
        self.network = perceptron(in_features, hidden_sizes, 1, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N,)`` of features ``(N, in_features)``; positive values stand for the source."""
        outputs: Tensor = self.network(features)
        return outputs.squeeze(-1)
