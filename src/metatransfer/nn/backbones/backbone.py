"""The one thing that methods ask of a network: features of a known size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from metatransfer.arguments import RemembersArguments
from metatransfer.errors import UserError
from metatransfer.nn.weights import WeightsReport, load_weights, weight_files_are_read


class Backbone(RemembersArguments, nn.Module, ABC):
    """A network that maps samples ``(N, *shape)`` to features ``(N, out_features)``.

    Subclass it, set ``out_features`` in the constructor, and write ``forward``. Every subclass that is imported can be
    named in a YAML file (``backbone: MyBackbone``). One that can start from weights of another run has an argument
    ``weights: str | None = None`` and ends its constructor by ``self.load_weights(weights)``.

    Attributes:
        out_features: size of the feature vector.
        in_shape: shape of one sample without the batch axis, ``None`` where any goes; checked before training starts.
        weights_report: what became of the weights of the file that the network started from, ``None`` without one.
    """

    out_features: int
    in_shape: Sequence[int] | None = None
    weights_report: WeightsReport | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            x: ``(N, *shape)`` float.

        Returns:
            ``(N, out_features)``.
        """

    def feature_maps(self, x: Tensor) -> Tensor:
        """Feature maps of images, before they are pooled or flattened, for methods that compare places.

        Args:
            x: ``(N, C, H, W)``.

        Returns:
            ``(N, channels, height, width)``.

        Raises:
            UserError: the network has no feature maps.
        """
        raise UserError(
            f"{type(self).__name__} has no feature maps (N, C, H, W): choose a convolutional network, such as Conv4, "
            "ResNet12 or LeNet."
        )

    def load_weights(self, path: str | Path | None) -> WeightsReport | None:
        """Takes over the weights of a file that fit this network, see :func:`metatransfer.nn.load_weights`.

        Where a method is built again from its checkpoint, nothing is read: the checkpoint has all weights, and the file
        may be gone.

        Args:
            path: the file; without one nothing happens.

        Returns:
            What was kept, dropped and is new; also kept as ``weights_report``.
        """
        if path is None or not weight_files_are_read():
            return None
        self.weights_report = load_weights(self, path)
        return self.weights_report

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises an error for samples that the network was not built for.

        Args:
            shape: shape of one sample.

        Raises:
            UserError: the shape differs from ``in_shape``.
        """
        if self.in_shape is not None and tuple(shape) != tuple(self.in_shape):
            raise UserError(
                f"{type(self).__name__} was built for samples of shape {tuple(self.in_shape)}, but the data has "
                f"{tuple(shape)}: give the backbone the data's channels and size (see its arguments)."
            )


def probe_out_features(network: nn.Module, in_shape: tuple[int, ...], name: str) -> int:
    """Size of the features that ``network`` makes of one sample, found by running it once on zeros.

    Raises:
        UserError: the sample is too small to pass through the network.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return int(network(torch.zeros(1, *in_shape)).numel())
    except RuntimeError as error:
        raise UserError(
            f"{name} cannot process samples of shape {in_shape}: they shrink to nothing on the way; use larger images "
            "or a shallower network."
        ) from error
    finally:
        network.train(training)
