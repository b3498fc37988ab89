"""The base class of image networks from other libraries."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.errors import UserError
from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.weights import WeightsReport, load_weights, read_weights, weight_files_are_read, weights_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageBackbone(Backbone):
    """A network of another library without its classifier, for images in [0, 1].

    It normalises the images itself, so that checkpoints hold mean and standard deviation, and repeats grey images over
    three channels.

    Attributes:
        network: the network of the library; its outputs are the features.
        fixed_size: the only height and width that the network accepts; ``None`` allows any size.
    """

    name: str
    mean: Tensor
    std: Tensor
    network: nn.Module
    fixed_size: int | None = None

    @abstractmethod
    def fresh_network(self) -> nn.Module:
        """The network without its classifier, with random weights."""

    def reset_parameters(self) -> None:
        """Draws new weights as the library does, because some of its modules have no ``reset_parameters``."""
        self.network.load_state_dict(self.fresh_network().state_dict())

    @abstractmethod
    def network_maps(self, x: Tensor) -> Tensor | None:
        """Feature maps ``(N, C, H, W)`` before pooling; ``None`` if the network has none."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` in [0, 1] to ``(N, out_features)``."""
        features: Tensor = self.network(self._normalised(x))
        return features.flatten(1)

    def feature_maps(self, x: Tensor) -> Tensor:
        """Feature maps of images in [0, 1] before pooling."""
        maps = self.network_maps(self._normalised(x))
        if maps is None:
            raise UserError(
                f"{self._title()} has no feature maps (N, C, H, W): choose a convolutional network, such as resnet18."
            )
        return maps

    def _normalised(self, x: Tensor) -> Tensor:
        if self.resize is not None and tuple(x.shape[-2:]) != (self.resize, self.resize):
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std  # repeats grey images over three channels

    def set_input(self, in_channels: int | None, image_size: int | None, resize: int | None) -> None:
        """Stores the shape of the images."""
        check_positive(in_channels=in_channels, image_size=image_size, resize=resize)
        self.in_channels = 3 if in_channels is None else in_channels
        self.channels = 3 if self.in_channels == 1 else self.in_channels  # of the network
        self.image_size, self.resize = image_size, resize

    def set_statistics(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, known: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        """Stores mean and standard deviation; ``known`` are the defaults."""
        self._given = {"mean": mean, "std": std}
        for name, given, fallback in (("mean", mean, known[0]), ("std", std, known[1])):
            values = list(fallback if given is None else given)
            if given is None and len(values) not in (1, self.channels):
                values = [0.0] if name == "mean" else [1.0]  # statistics of RGB images do not apply
            values = values * self.channels if len(values) == 1 else values
            right = len(values) == self.channels and all(math.isfinite(value) for value in values)
            if not right or (name == "std" and min(values) <= 0):
                kind = "finite numbers" if name == "mean" else "numbers above 0"
                raise UserError(
                    f"{name} must hold {kind}, one for each of the network's {self.channels} channels or one for all, "
                    f"but is {values}."
                )
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def load_weights(self, path: str | Path | None) -> WeightsReport | None:
        """Accepts weights of the library's network as well as of this backbone."""
        if path is None or not weight_files_are_read():
            return None
        mean, std = self.mean.clone(), self.std.clone()
        names = read_weights(weights_file(path))
        whole = any(name.removeprefix("backbone.").startswith("network.") for name in names)
        report = self.weights_report = load_weights(self if whole else self.network, path)
        for name, reason in report.dropped.items():
            if self.fixed_size is not None and "pos" in name.rpartition(".")[2] and reason.startswith("shape"):
                raise UserError(
                    f"weights file '{path}' is of a network for images of another size than {self.fixed_size} "
                    f"({name}: {reason}): set resize to the size of its training images."
                )
        # arguments have priority over the file
        self.mean.copy_(mean if self._given["mean"] is not None else self.mean)
        self.std.copy_(std if self._given["std"] is not None else self.std)
        return report

    def check_size(self) -> None:
        """Raises an error if the network cannot process images of ``image_size`` or ``resize``."""
        if self.image_size is not None or self.resize is not None:
            size = self.image_size or self.resize or 0
            self._try((self.in_channels, size, size))

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises an error if samples have a shape that the network was not built for."""
        shape = tuple(shape)
        fits = len(shape) == 3 and (shape[0] == self.in_channels or (shape[0] == 1 and self.channels == 3))
        size = self.image_size
        if not fits or (size is not None and shape[1:] != (size, size)):
            expected = (self.in_channels, *(("H", "W") if size is None else (size, size)))
            raise UserError(
                f"{self._title()} was built for images of shape ({', '.join(map(str, expected))}), but the data has "
                f"{shape}: set in_channels and image_size to those of the data (resize scales images to another size)."
            )
        self._try(shape)

    @torch.no_grad()
    def _try(self, shape: tuple[int, ...]) -> None:
        size = shape[1:] if self.resize is None else (self.resize, self.resize)
        if self.fixed_size is not None and size != (self.fixed_size, self.fixed_size):
            raise UserError(
                f"{self._title()} takes images of {self.fixed_size}x{self.fixed_size} only, but gets {size[0]}x"
                f"{size[1]}: set resize: {self.fixed_size}."
            )
        training = [module for module in self.modules() if module.training]  # frozen layers stay in evaluation mode
        try:
            self.eval()(torch.zeros(1, *shape, device=self.mean.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{self._title()} cannot process images of {size[0]}x{size[1]}: set resize to a larger size, e.g. 224, "
                "or use a shallower network."
            ) from error
        finally:
            for module in training:
                module.training = True

    def _title(self) -> str:
        return f"{type(self).__name__} '{self.name}'"

    def size_for(self, default: int, trained: bool) -> int:
        """The image size of a network with a fixed size."""
        size = self.resize or self.image_size or default
        if trained and size != default:
            raise UserError(
                f"{self._title()} with these weights takes images of {default}x{default} only, but gets {size}x{size}: "
                f"set resize: {default}."
            )
        return size
