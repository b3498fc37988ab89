"""A linear layer whose outputs start at 0."""

from torch import nn


class ZeroLinear(nn.Linear):
    """A linear layer that starts at 0, for corrections that are learned from nothing; arguments as of ``Linear``."""

    def reset_parameters(self) -> None:
        """Sets weights and bias to 0."""
        for value in self.parameters():
            nn.init.zeros_(value)
