"""Small convolutional networks for digits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone, probe_out_features
from metatransfer.nn.backbones.conv4 import channels_last


class LeNet(Backbone):
    """Blocks of 5x5 convolution, ReLU and 2x2 max-pooling, flattened: LeNet (LeCun et al. 1998).

    The default arguments give the feature extractor of DANN on MNIST (Ganin et al. 2016, 1505.07818), with 768 features
    of a 28x28 image; its label predictor is the default ``PerceptronHead``.

    Args:
        in_channels: channels of the images; defaults to those of the data on the command line, else to 1.
        image_size: height and width in pixels; defaults to that of the data on the command line, else to 28.
        channels: filters of each block.
        norm: whether batch normalisation follows each convolution.
        dropout: dropout probability of channels after the last block, and of units of the fully connected layer.
        hidden_size: size of a fully connected ReLU layer after the blocks; ``None`` for no such layer.
        weights: file of initial weights, see :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: there is no block, a size is below 1, or the images are too small for the blocks.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        image_size: int | None = None,
        channels: Sequence[int] = (32, 48),
        norm: bool = False,
        dropout: float = 0.0,
        hidden_size: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        in_channels, image_size = in_channels or 1, image_size or 28
        if not channels:
            raise UserError("LeNet needs at least one block, but channels is empty: give it e.g. [32, 48].")
        check_positive(in_channels=in_channels, image_size=image_size, channels=min(channels), hidden_size=hidden_size)
        check_fraction(dropout=dropout)
        self.in_shape = (in_channels, image_size, image_size)
        blocks: list[nn.Module] = []
        for size in channels:
            blocks.append(nn.Conv2d(in_channels, size, 5))
            if norm:
                blocks.append(nn.BatchNorm2d(size))
            blocks += [nn.MaxPool2d(2), nn.ReLU()]  # the same values as ReLU first, faster
            in_channels = size
        self.blocks = nn.Sequential(*blocks, *([nn.Dropout2d(dropout)] if dropout else []))
        self.out_features = probe_out_features(self.blocks, self.in_shape, "LeNet")
        self.hidden: nn.Module = nn.Identity()
        if hidden_size is not None:
            self.hidden = nn.Sequential(nn.Linear(self.out_features, hidden_size), nn.ReLU(), nn.Dropout(dropout))
            self.out_features = hidden_size
        self.load_weights(weights)

    def feature_maps(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to the maps of the last block."""
        maps: Tensor = self.blocks(channels_last(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_features)``."""
        features: Tensor = self.hidden(self.feature_maps(x).flatten(1))
        return features
