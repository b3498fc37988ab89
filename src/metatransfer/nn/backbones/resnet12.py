"""ResNet-12, the deeper standard backbone of few-shot image classification."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.backbones.conv4 import Norm, norm_layer


class _Block(nn.Module):
    """Three 3x3 convolutions with a 1x1 shortcut, leaky ReLU, 2x2 max-pooling and dropout."""

    def __init__(self, in_channels: int, channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [
                nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1, bias=False),
                norm_layer(norm, channels),
                *([nn.LeakyReLU(0.1)] if index < 2 else []),
            ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), norm_layer(norm, channels))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.layers(x) + self.shortcut(x), 0.1)
        return self.dropout(F.max_pool2d(out, 2))  # type: ignore[no-any-return]


class ResNet12(Backbone):
    """ResNet-12: four residual blocks of three convolutions, global average pooling.

    Oreshkin et al. 2018 (TADAM, 1805.10123) and Lee et al. 2019 (MetaOptNet, 1904.03758), whose widths are the default;
    plain dropout replaces their DropBlock.

    Args:
        in_channels: channels of the images; defaults to those of the data on the command line, else to 3.
        widths: channels of the four blocks.
        norm: ``"batch"``, ``"group"`` or ``"none"``.
        dropout: probability of dropping a channel after each block.
        weights: file of initial weights, see :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: there are not four widths, or ``norm`` is unknown.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        widths: Sequence[int] = (64, 160, 320, 640),
        norm: Norm = "batch",
        dropout: float = 0.1,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        in_channels = 3 if in_channels is None else in_channels
        check_positive(in_channels=in_channels)
        check_fraction(dropout=dropout)
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"ResNet12 has four blocks and needs four widths of 1 or more, but got {list(widths)}.")
        channels = [in_channels, *widths]
        self.blocks = nn.Sequential(*(_Block(a, b, norm, dropout) for a, b in pairwise(channels)))
        self.in_channels = in_channels
        self.out_features = widths[-1]
        self.load_weights(weights)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Accepts images of at least 16x16 with the right channels."""
        if len(shape) != 3 or shape[0] != self.in_channels or min(shape[1:]) < 16:
            raise UserError(
                f"ResNet12 was built for images of shape ({self.in_channels}, >=16, >=16), but the data has "
                f"{tuple(shape)}: set in_channels to the data's channels, and use images of at least 16x16."
            )

    def feature_maps(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, widths[-1], H // 16, W // 16)``."""
        maps: Tensor = self.blocks(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, widths[-1])``."""
        return self.feature_maps(x).mean((2, 3))
