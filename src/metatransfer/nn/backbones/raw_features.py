"""Samples themselves as features, without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone


class RawFeatures(Backbone):
    """Flattens samples, for methods that are fitted to features.

    Args:
        in_shape: shape of one sample; defaults to that of the data on the command line.

    Raises:
        UserError: the shape is missing, or a size is below 1.
    """

    def __init__(self, in_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if in_shape is None:
            raise UserError("RawFeatures needs in_shape, the shape of one sample: give that of the data.")
        for size in in_shape:
            check_positive(in_shape=size)
        self.in_shape = tuple(in_shape)
        self.out_features = math.prod(self.in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, *in_shape)`` to ``(N, out_features)``."""
        return x.flatten(1)
