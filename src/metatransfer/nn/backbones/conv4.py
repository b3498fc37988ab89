"""The four-block convolutional network of the few-shot literature."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from metatransfer.checks import check_choice, check_fraction, check_positive
from metatransfer.nn.backbones.backbone import Backbone, probe_out_features

Norm = Literal["batch", "group", "none"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer of a convolutional block."""
    check_choice("norm", norm, get_args(Norm))
    if norm == "group":
        return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def channels_last(x: Tensor) -> Tensor:
    """Images in the memory format that is fastest on a CPU; the layers of a network preserve it."""
    rows = x.movedim(1, -1)
    return rows.flatten(1).view(rows.shape).movedim(-1, 1)


class Conv4(Backbone):
    """Conv-4: four blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling, then flattened.

    Vinyals et al. 2016 (1606.04080), as in MAML (1703.03400) and ProtoNet (1703.05175). On 28x28 images the feature
    size is ``hidden_channels``; on 84x84 it is ``25 * hidden_channels``.

    Args:
        in_channels: channels of the images; defaults to those of the data on the command line, else to 1.
        image_size: height and width in pixels; defaults to that of the data on the command line, else to 28.
        hidden_channels: filters of every block (64 in the papers on Omniglot, 32 in MAML on mini-ImageNet).
        norm: ``"batch"``, ``"group"`` or ``"none"``.
        dropout: probability of dropping a channel after each block.
        weights: file of initial weights, or ``"glyphs"`` for weights pretrained on the training scripts of Glyphs with
            the default arguments; see :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: the images are too small for four poolings, or ``norm`` is unknown.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        image_size: int | None = None,
        hidden_channels: int = 64,
        norm: Norm = "batch",
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        in_channels = 1 if in_channels is None else in_channels
        image_size = 28 if image_size is None else image_size
        check_positive(in_channels=in_channels, image_size=image_size, hidden_channels=hidden_channels)
        check_fraction(dropout=dropout)
        blocks: list[nn.Module] = []
        for block in range(4):
            blocks += [
                nn.Conv2d(in_channels if block == 0 else hidden_channels, hidden_channels, 3, padding=1),
                norm_layer(norm, hidden_channels),
                # pooling before ReLU gives the same values at a quarter of the cost
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
            if dropout:
                blocks.append(nn.Dropout2d(dropout))
        self.layers = nn.Sequential(*blocks)
        self.in_shape = (in_channels, image_size, image_size)
        self.out_features = probe_out_features(self.layers, self.in_shape, "Conv4")
        self.load_weights(weights)

    def feature_maps(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, hidden_channels, H // 16, W // 16)``."""
        maps: Tensor = self.layers(channels_last(x) if x.device.type == "cpu" else x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """The feature maps, flattened, ``(N, out_features)``."""
        return self.feature_maps(x).flatten(1)
