"""The outer loss of some tasks with its gradients, as one compiled function."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metatransfer.batches import Episode
from metatransfer.functional.meta.batching import known_gradients
from metatransfer.functional.meta.compiled import CompiledLoss
from metatransfer.functional.meta.update_rules import Params

if TYPE_CHECKING:
    from metatransfer.methods.gradient.base import InnerLoopModule


class CompiledStep:
    """Compiles ``module.part_loss`` with the gradients of all trainable parameters.

    Args:
        module: the method.
    """

    def __init__(self, module: InnerLoopModule) -> None:
        whole = _PartLoss(module)

        def function(params: Params, part: Episode) -> tuple[Tensor, Any, Tensor]:
            named = {f"module.{name}": value for name, value in params.items()}
            return functional_call(whole, named, (part,))  # type: ignore[no-any-return]

        self._loss = CompiledLoss(function)

    def __call__(self, part: Episode, trainable: Params, key: Hashable) -> tuple[Tensor, Any, Tensor]:
        """The part loss, which can be differentiated once, the outputs, and whether all is finite."""
        device = part.query_y.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        (loss, outputs, finite), gradients = self._loss(trainable, part, key=(key, autocast))
        return known_gradients(loss, gradients, list(trainable.values())), outputs, finite

    def __deepcopy__(self, memo: object) -> CompiledStep | None:
        """A copied module compiles anew."""
        return None


class _PartLoss(nn.Module):
    """Lets ``functional_call`` give a whole method other parameters."""

    def __init__(self, module: InnerLoopModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, part: Episode) -> tuple[Tensor, Any, Tensor]:
        """The part loss under the parameters of the call."""
        return self.module.part_loss(part)
