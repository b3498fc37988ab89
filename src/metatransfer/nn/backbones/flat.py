"""Networks for samples of any fixed shape, which they flatten."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_count, check_fraction, check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone, other_network


class MLP(Backbone):
    """Flattens each sample and passes it through fully connected ReLU layers.

    With ``hidden=(40, 40)`` and a linear head it is the sinusoid network of MAML (Finn et al. 2017, 1703.03400); with
    ``hidden=(256, 128, 64, 64)`` and ``norm=True`` the paper's Omniglot network without convolution.

    Args:
        in_shape: shape of one sample, e.g. ``(1, 28, 28)``; defaults to that of the data on the command line, else to
            ``(1,)``.
        hidden: widths of the layers; the last one is ``out_features``.
        norm: whether batch normalisation precedes each ReLU.
        dropout: dropout probability after each ReLU.
        weights: file of initial weights, see :func:`metatransfer.nn.load_weights`.
    """

    def __init__(
        self,
        in_shape: Sequence[int] | None = None,
        hidden: Sequence[int] = (40, 40),
        norm: bool = False,
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        in_shape = (1,) if in_shape is None else in_shape
        check_fraction(dropout=dropout)
        if not hidden or not in_shape or min([*hidden, *in_shape]) < 1:
            raise UserError(
                f"MLP needs at least one hidden width and sizes of 1 or more, but got in_shape={list(in_shape)}, "
                f"hidden={list(hidden)}."
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise([math.prod(in_shape), *hidden]):
            layers += [nn.Linear(fan_in, fan_out), *([nn.BatchNorm1d(fan_out)] if norm else []), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.in_shape = tuple(in_shape)
        self.out_features = hidden[-1]
        self.load_weights(weights)

    def _remedy(self, shape: tuple[int, ...], axes: int) -> str:
        return (
            f"build it with in_shape={shape} (on the command line, leave out in_shape), or give a trained one samples "
            "of its shape"
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, *in_shape)`` to ``(N, hidden[-1])``."""
        features: Tensor = self.layers(x)
        return features


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
            raise UserError(
                "RawFeatures needs in_shape, the shape of a sample: give that of the data. For texts use TokenAverage."
            )
        for size in in_shape:
            check_positive(in_shape=size)
        self.in_shape = tuple(in_shape)
        self.out_features = math.prod(self.in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, *in_shape)`` to ``(N, out_features)``."""
        return x.flatten(1)


class PaddedRows(Backbone):
    """Rows of tables with different numbers of columns, filled up with columns of 0, for in-context learners.

    Args:
        max_features: largest number of columns.

    Raises:
        UserError: a number below 1.
    """

    def __init__(self, max_features: int = 32) -> None:
        super().__init__()
        check_count(max_features=max_features)
        self.in_shape, self.out_features = (max_features,), max_features

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises an error unless samples are rows with at most ``max_features`` columns."""
        if len(shape) != 1:
            raise UserError(
                f"PaddedRows takes rows of a table, but samples have the shape {shape}: {other_network(shape)}."
            )
        if shape[0] > self.out_features:
            raise UserError(
                f"PaddedRows was built for at most {self.out_features} columns, but the rows have {shape[0]}: leave "
                "columns out, or train with a larger max_features."
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, <= max_features)`` to ``(N, max_features)``."""
        return F.pad(x, (0, self.out_features - x.shape[-1]))
