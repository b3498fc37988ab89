"""Tensors of all samples of an evaluation."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class Collector(Metric):
    """Keeps tensors ``(N, ...)`` for all samples, of all processes.

    Attributes:
        fields: names of the tensors.
    """

    full_state_update = False
    fields: ClassVar[tuple[str, ...]]

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - torchmetrics' own signature
        super().__init__(**kwargs)
        for name in self.fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def add(self, *values: Tensor) -> None:
        """Adds a batch, in the order of the fields."""
        for name, value in zip(self.fields, values, strict=True):
            getattr(self, name).append(value)

    def collected(self) -> list[Tensor]:
        """All batches, in the order of the fields."""
        parts = [getattr(self, name) for name in self.fields]
        return [torch.cat(part) if isinstance(part, list) else part for part in parts]
