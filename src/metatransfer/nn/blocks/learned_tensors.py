"""What is learned about parameters besides their values: rates, how fast a momentum fades, values for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from metatransfer.errors import UserError


class LearnedTensors(nn.Module):
    """A learned tensor for each parameter name.

    Args:
        shapes: of the tensors, by the name of the parameter that they belong to.
        initial: value that all of them start from.

    Raises:
        UserError: there is no name.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], initial: float) -> None:
        super().__init__()
        if not shapes:
            raise UserError("learned rates need at least one parameter to belong to: check what is frozen.")
        self.initial = initial
        # names of parameters hold dots, which torch keeps for submodules
        self.keys = {name: name.replace(".", "/") for name in shapes}
        for name, key in self.keys.items():
            self.register_parameter(key, nn.Parameter(torch.empty(tuple(shapes[name]))))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every number back to where it started."""
        for value in self.parameters():
            nn.init.constant_(value, self.initial)

    def forward(self) -> dict[str, Tensor]:
        """The tensors by name."""
        # by attribute: functional_call may have put other tensors in their place
        return {name: getattr(self, key) for name, key in self.keys.items()}
