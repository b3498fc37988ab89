"""The base class of image networks from other libraries."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.errors import UserError, explained
from metatransfer.nn.backbones.backbone import Backbone, other_network
from metatransfer.nn.weights import WeightsReport, load_tensors, read_weights, weight_files_are_read, weights_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Known(NamedTuple):
    """What a library knows of a network and its weights."""

    named: bool  # whether the weights are a name of the library, not a file
    size: int | None  # the only size of images that the network accepts, if it is not built for another one
    mean: Sequence[float]  # of each channel, in the training of the weights
    std: Sequence[float]


class ImageBackbone(Backbone):
    """A network of another library without its classifier, for images in [0, 1].

    It normalises the images itself, so that checkpoints hold mean and standard deviation, and repeats grey images over
    three channels. Nothing is downloaded unless ``download`` is set.

    Args:
        name: name of the network in the library.
        weights: ``None`` for random weights; ``default`` or another name of the library; or a file, see
            :func:`metatransfer.nn.load_weights`.
        in_channels: channels of the images; defaults to those of the data on the command line, else to 3. Grey images
            are repeated over three channels. Other numbers exclude the library's weights.
        image_size: height and width of the images; defaults to that of the data on the command line, else to any.
        resize: height and width to which the network scales images, e.g. 224 for small images.
        mean: mean of each channel; defaults to that of the weights' training, or 0 without weights.
        std: standard deviation of each channel; defaults to that of the weights' training, or 1 without weights.
        download: whether to download missing weights of the library.

    Attributes:
        network: the network of the library; its outputs are the features.
        fixed_size: the only height and width that the network accepts; ``None`` allows any size.

    Raises:
        UserError: an unknown name, missing or unsuitable weights, or images that the network cannot process.
    """

    mean: Tensor
    std: Tensor
    network: nn.Module
    fixed_size: int | None = None

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, image_size=image_size, resize=resize)
        self.name, self.image_size, self.resize = name, image_size, resize
        self.in_channels = 3 if in_channels is None else in_channels
        self.channels = 3 if self.in_channels == 1 else self.in_channels  # of the network
        known = self.known(weights)
        if known.named and self.channels != 3:
            raise UserError(
                f"weights '{weights}' of {name} take 3 channels (1 is repeated), but in_channels is {in_channels}: "
                "omit weights, or use images with 3 channels."
            )
        if known.size is not None:
            self.fixed_size = self._size_for(known.size, known.named)
        self.network = self.fresh_network()
        self._given = {"mean": mean, "std": std}
        self._set_statistics(((0.0,), (1.0,)) if weights is None else (known.mean, known.std))
        if known.named and weights is not None:
            if weight_files_are_read():  # otherwise a checkpoint will fill the network
                self._load_named(self.named_file(weights, download))
        else:
            self.load_weights(weights)
        if image_size or resize:
            size = image_size or resize or 0
            self._try((self.in_channels, size, size))

    @abstractmethod
    def known(self, weights: str | None) -> Known:
        """What the library knows of the network ``self.name`` and of its weights."""

    @abstractmethod
    def named_file(self, weights: str, download: bool) -> Path:
        """The file of weights that the library names."""

    @abstractmethod
    def fresh_network(self) -> nn.Module:
        """The network without its classifier, with random weights; also sets ``out_features``."""

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

    def _set_statistics(self, known: tuple[Sequence[float], Sequence[float]]) -> None:
        for (name, given), fallback in zip(self._given.items(), known, strict=True):
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
        file = weights_file(path)
        given = {self.current_name(name): value for name, value in read_weights(file).items()}
        whole = any(".network." in f".{name}" for name in given)
        report = self.weights_report = load_tensors(self if whole else self.network, given, file)
        for name, reason in report.dropped.items():
            if self.fixed_size is not None and "pos" in name.rpartition(".")[2] and reason.startswith("shape"):
                raise UserError(
                    f"weights file '{path}' is for images of another size than {self.fixed_size} "
                    f"({name}: {reason}): set resize to the size of its training images."
                )
        # arguments have priority over the file
        self.mean.copy_(mean if self._given["mean"] is not None else self.mean)
        self.std.copy_(std if self._given["std"] is not None else self.std)
        return report

    def _load_named(self, file: Path) -> None:
        report = self.load_weights(file)
        # old files lack the counters of BatchNorm
        lost = [name for name in report.new if not name.endswith("num_batches_tracked")] if report else []
        if lost:
            raise UserError(
                f"weights file '{file}' does not fit {self.name}: '{lost[0]}' is missing or of another shape; download "
                "it again."
            )

    def current_name(self, name: str) -> str:
        """The name of a tensor in today's library, by its name in a file; by default the same."""
        return name

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raises an error if samples have a shape that the network was not built for."""
        shape = tuple(shape)
        fits = len(shape) == 3 and (shape[0] == self.in_channels or (shape[0] == 1 and self.channels == 3))
        size = self.image_size
        if not fits or (size is not None and shape[1:] != (size, size)):
            expected = (self.in_channels, *(("H", "W") if size is None else (size, size)))
            remedy = "set in_channels and image_size to those of the data (resize scales images to another size)"
            raise UserError(
                f"{self._title()} was built for images of shape ({', '.join(map(str, expected))}), but the data has "
                f"{shape}: {remedy if len(shape) == 3 else other_network(shape)}."
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
        problem = f"{self._title()} cannot process images of {size[0]}x{size[1]}"
        remedy = "set resize to a larger size, e.g. 224, or use a shallower network"
        try:
            with explained(problem, remedy, RuntimeError, ValueError, AssertionError, quoted=False):
                self.eval()(torch.zeros(1, *shape, device=self.mean.device))
        finally:
            for module in training:
                module.training = True

    def _title(self) -> str:
        return f"{type(self).__name__} '{self.name}'"

    def _size_for(self, default: int, trained: bool) -> int:
        size = self.resize or self.image_size or default
        if trained and size != default:
            raise UserError(
                f"{self._title()} with these weights takes images of {default}x{default} only, but gets {size}x{size}: "
                f"set resize: {default}."
            )
        return size
