"""A network that compares feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_positive


class RelationHead(nn.Module):
    """The relation module of Sung et al. 2018 (1711.06025): scores of pairs of feature maps.

    Two blocks of 3x3 convolution, BatchNorm, 2x2 max-pooling and ReLU on the concatenated maps, then two fully
    connected layers. The maps of the last block are averaged, so that maps of any size are accepted.

    Args:
        in_channels: channels ``C`` of the feature maps.
        channels: channels of both blocks.
        hidden_size: size of the first fully connected layer.
    """

    def __init__(self, in_channels: int, channels: int = 64, hidden_size: int = 8) -> None:
        super().__init__()
        check_positive(channels=channels, hidden_size=hidden_size)
        self.in_channels = in_channels
        self.first = nn.Conv2d(2 * in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(channels), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
        )  # fmt: skip
        self.score = nn.Sequential(nn.Linear(channels, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Scores ``(T, Q, W)`` before the sigmoid, of all pairs of ``(T, W, C, H, W)`` and ``(T, Q, C, H, W)``."""
        # a convolution of concatenated maps is the sum of one for each part, which are computed once per sample
        weights = torch.split(self.first.weight, self.in_channels, 1)
        parts = [
            torch.unflatten(F.conv2d(maps.flatten(0, 1), weight, padding=1), 0, maps.shape[:2])
            for maps, weight in ((classes, weights[0]), (queries, weights[1]))
        ]
        assert self.first.bias is not None
        pairs = parts[0].unsqueeze(1) + parts[1].unsqueeze(2) + self.first.bias.view(-1, 1, 1)
        maps = self.blocks(pairs.flatten(0, 2))
        return self.score(maps.mean((2, 3))).view(pairs.shape[:3])  # type: ignore[no-any-return]
