"""The four-block convolutional network of the few-shot literature."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from metatransfer.checks import check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone, probe_out_features

Norm = Literal["batch", "group", "none"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The normalisation layer of a convolutional block.

    Raises:
        UserError: an unknown name.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)
    if norm == "none":
        return nn.Identity()
    raise UserError(f"norm must be 'batch', 'group' or 'none', but is {norm!r}.")


def channels_last(x: Tensor) -> Tensor:
    """Images in the memory format that convolutions, pooling and BatchNorm are fastest in on a CPU; they pass it on."""
    rows = x.movedim(1, -1)
    return rows.flatten(1).view(rows.shape).movedim(-1, 1)


class Conv4(Backbone):
    """Conv-4: four blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling, then flattened.

    Vinyals et al. 2016 (1606.04080), as in MAML (1703.03400) and ProtoNet (1703.05175). On 28x28 images the feature
    size is ``hidden_channels``; on 84x84 it is ``25 * hidden_channels``.

    Args:
        in_channels: channels of the images; where left out those of the data, on the command line, else 1.
        image_size: height and width of the images, in pixels; where left out that of the data, else 28.
        hidden_channels: filters of every block (64 in the papers on Omniglot, 32 in MAML on mini-ImageNet).
        norm: ``"batch"``, ``"group"`` or ``"none"``.
        dropout: probability of dropping a channel after each block.
        weights: file of weights to start from: a checkpoint of any method with this backbone, a ``state_dict`` or
            ``.safetensors``, or ``"glyphs"``: pretrained on Glyphs' training scripts, with the default arguments; see
            :func:`metatransfer.nn.load_weights`.

    Raises:
        UserError: images too small for four poolings, or an unknown ``norm``.
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
                # the maximum of what ReLU leaves is what ReLU leaves of the maximum: a quarter of the work
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
