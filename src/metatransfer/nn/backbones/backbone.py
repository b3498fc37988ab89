"""The base class of networks that compute features."""

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

    A subclass sets ``out_features`` in its constructor and implements ``forward``. Every imported subclass can be named
    in a YAML file (``backbone: MyBackbone``). To support initial weights, add an argument ``weights: str | None =
    None`` and call ``self.load_weights(weights)`` at the end of the constructor.

    Attributes:
        out_features: size of the feature vector.
        in_shape: shape of one sample without the batch axis, checked before training; ``None`` allows any shape.
        weights_report: report on the file of initial weights, ``None`` without one.
    """

    out_features: int
    in_shape: Sequence[int] | None = None
    weights_report: WeightsReport | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, out_features)`` of samples ``(N, *shape)``."""

    def feature_maps(self, x: Tensor) -> Tensor:
        """Feature maps ``(N, channels, height, width)`` of images, before they are pooled or flattened.

        Raises:
            UserError: the network has no feature maps.
        """
        raise UserError(
            f"{type(self).__name__} has no feature maps (N, C, H, W): choose a convolutional network, such as Conv4, "
            "ResNet12 or LeNet."
        )

    def load_weights(self, path: str | Path | None) -> WeightsReport | None:
        """Loads those weights of a file that match this network, see :func:`metatransfer.nn.load_weights`.

        When a method is rebuilt from its checkpoint, the file is not read: the checkpoint has all weights.

        Args:
            path: the file; ``None`` does nothing.

        Returns:
            The report on all tensors, also available as ``weights_report``.
        """
        if path is None or not weight_files_are_read():
            return None
        self.weights_report = load_weights(self, path)
        return self.weights_report

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises an error if samples have a shape that the network was not built for.

        Raises:
            UserError: the shape of a sample differs from ``in_shape``.
        """
        if self.in_shape is not None and tuple(shape) != tuple(self.in_shape):
            raise UserError(
                f"{type(self).__name__} was built for samples of shape {tuple(self.in_shape)}, but the data has "
                f"{tuple(shape)}: {self._remedy(tuple(shape), len(self.in_shape))}."
            )

    def _remedy(self, shape: tuple[int, ...], axes: int) -> str:
        """Advice for samples of another shape than the one, with some axes, that the network was built for."""
        remedy = "give the backbone the data's channels and size (see its arguments)"
        return other_network(shape) if len(shape) != axes else remedy


def other_network(shape: tuple[int, ...]) -> str:
    """Advice on the network for samples of a shape."""
    if len(shape) == 3:
        return "for images use a network such as Conv4, or MLP"
    kind = "rows of numbers, such as those of a table," if len(shape) == 1 else "such samples"
    return f"for {kind} use another network: --model.backbone MLP"


def probe_out_features(network: nn.Module, in_shape: tuple[int, ...], name: str) -> int:
    """Size of the features of one sample, found by running the network on zeros."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return int(network(torch.zeros(1, *in_shape)).numel())
    except RuntimeError as error:
        raise UserError(
            f"{name} cannot process samples of shape {in_shape}: the feature maps shrink to size 0; use larger images "
            "or a shallower network."
        ) from error
    finally:
        network.train(training)
