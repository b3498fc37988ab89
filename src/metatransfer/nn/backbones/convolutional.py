"""Small convolutional networks for images, without pretrained weights of other libraries."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_choice, check_count, check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone, other_network, probe_out_features

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
        pools: number of blocks that pool; with 2, as in relation networks, 28x28 images have 7x7 feature maps.

    Raises:
        UserError: the images are too small for the poolings, or ``norm`` is unknown.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        image_size: int | None = None,
        hidden_channels: int = 64,
        norm: Norm = "batch",
        dropout: float = 0.0,
        weights: str | None = None,
        pools: int = 4,
    ) -> None:
        super().__init__()
        in_channels = 1 if in_channels is None else in_channels
        image_size = 28 if image_size is None else image_size
        check_positive(in_channels=in_channels, image_size=image_size, hidden_channels=hidden_channels)
        check_fraction(dropout=dropout)
        check_count(0, 4, pools=pools)
        blocks: list[nn.Module] = []
        for block in range(4):
            blocks += [
                nn.Conv2d(in_channels if block == 0 else hidden_channels, hidden_channels, 3, padding=1),
                norm_layer(norm, hidden_channels),
                # pooling before ReLU gives the same values at a quarter of the cost
                nn.MaxPool2d(2) if block < pools else nn.Identity(),
                nn.ReLU(),
            ]
            if dropout:
                blocks.append(nn.Dropout2d(dropout))
        self.layers = nn.Sequential(*blocks)
        self.in_shape = (in_channels, image_size, image_size)
        self.out_features = probe_out_features(self.layers, self.in_shape, "Conv4")
        self.load_weights(weights)

    def feature_maps(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, hidden_channels, H // 16, W // 16)``, with four poolings."""
        maps: Tensor = self.layers(channels_last(x) if x.device.type == "cpu" else x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """The feature maps, flattened, ``(N, out_features)``."""
        return self.feature_maps(x).flatten(1)


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
            remedy = "set in_channels to the data's channels, and use images of at least 16x16"
            raise UserError(
                f"ResNet12 was built for images of shape ({self.in_channels}, >=16, >=16), but the data has "
                f"{tuple(shape)}: {remedy if len(shape) == 3 else other_network(shape)}."
            )

    def feature_maps(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, widths[-1], H // 16, W // 16)``."""
        maps: Tensor = self.blocks(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, widths[-1])``."""
        return self.feature_maps(x).mean((2, 3))
