"""Networks that tell domains apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatransfer.checks import check_fraction, check_positive


class DomainDiscriminator(nn.Module):
    """A perceptron that says by one number whether features come from the source or from the target.

    That of DANN on MNIST has one hidden layer of 100 (Ganin et al. 2016, 1505.07818), those of larger images two of
    1024.

    Args:
        in_features: size of the features.
        hidden_sizes: sizes of its hidden layers, each followed by ReLU and dropout.
        dropout: probability of dropping a hidden value.

    Raises:
        UserError: a size below 1, or a probability outside of [0, 1).
    """

    def __init__(self, in_features: int, hidden_sizes: Sequence[int] = (100,), dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(in_features=in_features, **{f"hidden_sizes[{i}]": size for i, size in enumerate(hidden_sizes)})
        check_fraction(dropout=dropout)
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [nn.Linear(in_features, size), nn.ReLU(), nn.Dropout(dropout)]
            in_features = size
        self.network = nn.Sequential(*layers, nn.Linear(in_features, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the source.

        Args:
            features: ``(N, in_features)``.

        Returns:
            ``(N,)``: above 0 for what it takes for source samples.
        """
        outputs: Tensor = self.network(features)
        return outputs.squeeze(-1)
