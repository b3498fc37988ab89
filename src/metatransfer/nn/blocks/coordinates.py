"""A network that is applied to every coordinate of a gradient, with the same weights."""

from torch import Tensor, nn

from metatransfer.functional.meta.gradients import gradient_features


class CoordinateNetwork(nn.Module):
    r"""Maps each number of a gradient to a weight, :math:`w = -s\,m(a, s)`, by a perceptron shared by all coordinates.

    It sees magnitude :math:`a` and sign :math:`s`, see
    :func:`~metatransfer.functional.meta.gradients.gradient_features`. With the sign as a factor, weights differ in sign
    from the start, so that ReLU units after them are not all inactive, and no gradient means no weight.

    Args:
        hidden_size: size of the two hidden layers.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh(),
            nn.Linear(hidden_size, 1),
        )  # fmt: skip

    def forward(self, gradients: Tensor) -> Tensor:
        """Weights of the shape of the gradients."""
        features = gradient_features(gradients)
        weights: Tensor = -features[..., 1] * self.layers(features).squeeze(-1)
        return weights
