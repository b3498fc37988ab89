"""Any classification network of torchvision as a backbone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.models import WeightsEnum  # type: ignore[import-untyped]

from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError
from metatransfer.nn.backbones.image_backbone import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from metatransfer.nn.weights import WeightsReport, read_weights, weight_files_are_read

_HALF = ((0.5,), (0.5,))
_AUXILIARY = ("googlenet", "inception_v3")  # with auxiliary classifiers, and inputs in [-1, 1]


class TorchvisionBackbone(ImageBackbone):
    """A classification network of torchvision without its last linear layer.

    Dropout before the removed layer is kept. Nothing is downloaded unless ``download`` is set.

    Args:
        name: name of the network, e.g. ``resnet18``, ``mobilenet_v3_small``, ``vit_b_16``.
        weights: ``None`` for random weights; ``default`` or a name of torchvision (``IMAGENET1K_V1``) for the file in
            torch's hub folder (``$TORCH_HOME/hub/checkpoints``); or a file, see :func:`metatransfer.nn.load_weights`.
        in_channels: channels of the images; defaults to those of the data on the command line, else to 3. Grey images
            are repeated over three channels. Other numbers replace the first convolution and exclude weights.
        image_size: height and width of the images; defaults to that of the data on the command line, else to any.
        resize: height and width to which the network scales images, e.g. 224 for small images.
        mean: mean of each channel; defaults to that of the weights' training (ImageNet), or 0 without weights.
        std: standard deviation of each channel; defaults to that of the weights' training, or 1 without weights.
        download: whether to download missing weights.

    Raises:
        UserError: an unknown name, missing or unsuitable weights, or images that the network cannot process.
    """

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
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise UserError(f"torchvision has no classification network '{name}'{did_you_mean(str(name), known)}")
        self.name = name
        self.set_input(in_channels, image_size, resize)
        entry = _entry(name, weights)
        if entry is not None and self.channels != 3:
            raise UserError(
                f"weights '{weights}' of {name} take 3 channels (1 is repeated), but in_channels is {in_channels}: "
                "omit weights, or use images with 3 channels."
            )
        if name.startswith(("vit_", "maxvit")):
            trained = 224 if entry is None else int(entry.meta["min_size"][0])
            self.fixed_size = self.size_for(trained, entry is not None)
        self.network = self.fresh_network()
        self.out_features = self._width
        self.set_statistics(mean, std, _statistics(name, weights, entry))
        if entry is None:
            self.load_weights(weights)
        elif weight_files_are_read():
            self.weights_report = self._load_entry(entry, download)
        self.check_size()

    def fresh_network(self) -> nn.Module:
        """The network without its last linear layer, with random weights."""
        settings: dict[str, Any] = {"aux_logits": False, "init_weights": True} if self.name in _AUXILIARY else {}
        if self.fixed_size is not None:
            vit = self.name.startswith("vit_")
            settings = {"image_size": self.fixed_size} if vit else {"input_size": (self.fixed_size,) * 2}
        try:
            network: nn.Module = torchvision.models.get_model(self.name, weights=None, **settings)
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"{self.name} cannot be built for images of {self.fixed_size}x{self.fixed_size}: set resize: 224."
            ) from error
        self._head, head = [(path, module) for path, module in network.named_modules() if _mixes(module)][-1]
        # squeezenet's classifier is a convolution
        self._width = int(head.in_channels if isinstance(head, nn.Conv2d) else head.in_features)
        network.set_submodule(self._head, nn.Identity())
        if self.channels != 3:
            path, first = next((path, module) for path, module in network.named_modules() if _mixes(module))
            network.set_submodule(path, _widened(first, self.channels))
        return network

    def network_maps(self, x: Tensor) -> Tensor | None:
        """The input of the last pooling layer, or the last feature maps if pooling is not a layer."""
        if self.name.startswith("vit_"):
            return None
        pooled: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.AdaptiveAvgPool2d):
                pooled[:] = [inputs[0]]
            elif isinstance(output, Tensor) and output.dim() == 4:
                outputs[:] = [output]

        hooks = [part.register_forward_hook(keep) for part in self.network.modules() if not list(part.children())]
        try:
            self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        if self.name.startswith("densenet"):  # its last ReLU is not a layer
            return F.relu(outputs[0])
        return (pooled or outputs)[0]

    def _load_entry(self, entry: WeightsEnum, download: bool) -> WeightsReport:
        # every weight but the classifiers' must be in the file
        file = _file(entry, self.name, download)
        digest = _checked(file, entry.url)
        given = {_renamed(name): value for name, value in read_weights(file).items()}
        own = self.network.state_dict()
        for name, value in own.items():
            if name.endswith("num_batches_tracked") and name not in given:
                continue  # missing in old files
            if name not in given or given[name].shape != value.shape:
                problem = f"has shape {tuple(given[name].shape)}" if name in given else "is missing"
                raise UserError(
                    f"weights file '{file}' is not of {self.name}: '{name}' of shape {tuple(value.shape)} {problem}; "
                    f"download {entry.url} again."
                )
            if value.is_floating_point() and not torch.isfinite(given[name]).all():
                raise UserError(
                    f"weights '{entry.name}' of {self.name} hold NaN in '{name}', because they are of a part of the "
                    "network only: use others, e.g. IMAGENET1K_V1."
                )
            value.copy_(given[name])  # changes the network, too
        dropped = {
            name: "classifier, removed" if name.startswith(f"{self._head}.") else "not in the network"
            for name in given
            if name not in own
        }
        kept = tuple(name for name in own if name in given)
        return WeightsReport(file.name, digest, kept, dropped, tuple(name for name in own if name not in given))


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _widened(first: nn.Module, channels: int) -> nn.Conv2d:
    """A first convolution for another number of channels, with random weights."""
    assert isinstance(first, nn.Conv2d)  # true for all networks of torchvision
    size, stride, padding = first.kernel_size, first.stride, first.padding
    bias = first.bias is not None
    return nn.Conv2d(channels, first.out_channels, size, stride, padding, bias=bias)  # type: ignore[arg-type]


def _entry(name: str, weights: str | None) -> WeightsEnum | None:
    # torchvision's description of named weights; None for a file or random weights
    if weights is None:
        return None
    known = torchvision.models.get_model_weights(name)
    if weights.upper() in known.__members__:
        return known[weights.upper()]
    if Path(weights).suffix or len(Path(weights).parts) > 1 or Path(weights).exists():
        return None
    names = ["default", *(entry.name for entry in known)]
    raise UserError(
        f"weights of {name} must be one of {', '.join(names)}, or a file, but are '{weights}'"
        f"{did_you_mean(weights, names)}"
    )


def _statistics(name: str, weights: str | None, entry: WeightsEnum | None) -> tuple[Sequence[float], Sequence[float]]:
    if weights is None:
        return (0.0,), (1.0,)
    if name in _AUXILIARY:
        return _HALF  # torchvision converts ImageNet's statistics to these inside the network
    transforms = None if entry is None else entry.transforms()
    return getattr(transforms, "mean", IMAGENET_MEAN), getattr(transforms, "std", IMAGENET_STD)


def _file(entry: WeightsEnum, name: str, download: bool) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlparse(entry.url).path).name
    if file.is_file():
        return file
    if not download:
        raise UserError(
            f"weights '{entry.name}' of {name} are not on this machine: download {entry.url} to '{file}', or set "
            "download: true."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(file), progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"weights '{entry.name}' of {name} could not be downloaded from {entry.url} ({error}): put the file into "
            f"'{folder}' yourself."
        ) from error
    return file


def _checked(file: Path, url: str) -> str:
    # the sha256 of a file, whose name contains the first digits
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if expected and not digest.startswith(expected[1]):
        raise UserError(
            f"weights file '{file}' must have a sha256 that starts with {expected[1]}, but it starts with {digest[:8]}:"
            f" the file is damaged; delete it and download {url} again."
        )
    return digest


def _renamed(name: str) -> str:
    # old files of DenseNet contain names with a dot that is no longer allowed
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)
