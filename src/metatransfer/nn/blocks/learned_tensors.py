"""Learned quantities that belong to parameters, such as learning rates and momenta."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from metatransfer.errors import UserError


class LearnedTensors(nn.Module):
    """A learned tensor for each parameter name.

    Args:
        shapes: shapes of the tensors by parameter name.
        initial: initial value of all tensors.

    Raises:
        UserError: ``shapes`` is empty.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], initial: float) -> None:
        super().__init__()
        if not shapes:
            raise UserError("learned rates need at least one parameter that is not frozen: unfreeze some.")
        self.initial = initial
        # parameter names contain dots, which torch reserves for submodules
        self.keys = {name: name.replace(".", "/") for name in shapes}
        for name, key in self.keys.items():
            self.register_parameter(key, nn.Parameter(torch.empty(tuple(shapes[name]))))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all tensors to their initial value."""
        for value in self.parameters():
            nn.init.constant_(value, self.initial)

    def forward(self) -> dict[str, Tensor]:
        """The tensors by name."""
        # by attribute, because functional_call may have replaced them
        return {name: getattr(self, key) for name, key in self.keys.items()}
