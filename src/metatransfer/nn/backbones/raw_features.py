"""No network at all: samples as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone


class RawFeatures(Backbone):
    """Gives the values of a sample as its features, for methods that are fitted to features.

    Args:
        in_shape: shape of one sample; on the command line taken from the data.

    Raises:
        UserError: no shape, or a size below 1.
    """

    def __init__(self, in_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if in_shape is None:
            raise UserError("RawFeatures needs in_shape, the shape of one sample: on the command line it follows data.")
        for size in in_shape:
            check_positive(in_shape=size)
        self.in_shape = tuple(in_shape)
        self.out_features = math.prod(self.in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, *in_shape)`` to ``(N, out_features)``."""
        return x.flatten(1)
