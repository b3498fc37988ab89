"""Any classification network of torchvision as a backbone."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.models import WeightsEnum  # type: ignore[import-untyped]

from metatransfer.checks import did_you_mean
from metatransfer.errors import UserError, explained
from metatransfer.nn.backbones.image_backbone import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone, Known
from metatransfer.nn.weights import sha256

_AUXILIARY = ("googlenet", "inception_v3")  # with auxiliary classifiers, and inputs in [-1, 1]


class TorchvisionBackbone(ImageBackbone):
    """A classification network of torchvision without its last linear layer.

    The arguments are those of :class:`ImageBackbone`: ``name`` is e.g. ``resnet18``, ``mobilenet_v3_small`` or
    ``vit_b_16``, and ``weights`` may be ``default`` or a name of torchvision (``IMAGENET1K_V1``) for the file in
    torch's hub folder (``$TORCH_HOME/hub/checkpoints``). Dropout before the removed layer is kept. A number of channels
    other than 1 and 3 replaces the first convolution.
    """

    def known(self, weights: str | None) -> Known:
        """Size and statistics of torchvision's weights."""
        names = torchvision.models.list_models(module=torchvision.models)
        if self.name not in names:
            raise UserError(
                f"torchvision has no classification network '{self.name}'{did_you_mean(str(self.name), names)}"
            )
        entry = _entry(self.name, weights)
        trained = 224 if entry is None else int(entry.meta["min_size"][0])
        transforms = None if entry is None else entry.transforms()
        mean, std = getattr(transforms, "mean", IMAGENET_MEAN), getattr(transforms, "std", IMAGENET_STD)
        if self.name in _AUXILIARY:
            mean, std = (0.5,), (0.5,)  # torchvision converts ImageNet's statistics to these inside the network
        return Known(entry is not None, trained if self.name.startswith(("vit_", "maxvit")) else None, mean, std)

    def fresh_network(self) -> nn.Module:
        """The network without its last linear layer, with random weights."""
        settings: dict[str, Any] = {"aux_logits": False, "init_weights": True} if self.name in _AUXILIARY else {}
        if self.fixed_size is not None:
            vit = self.name.startswith("vit_")
            settings = {"image_size": self.fixed_size} if vit else {"input_size": (self.fixed_size,) * 2}
        problem = f"{self.name} cannot be built for images of {self.fixed_size}x{self.fixed_size}"
        with explained(problem, "set resize: 224", ValueError, AssertionError, quoted=False):
            network: nn.Module = torchvision.models.get_model(self.name, weights=None, **settings)
        mixing = [entry for entry in network.named_modules() if isinstance(entry[1], nn.Linear | nn.Conv2d)]
        (first, convolution), (last, head) = mixing[0], mixing[-1]
        # squeezenet's classifier is a convolution
        self.out_features = int(head.in_channels if isinstance(head, nn.Conv2d) else head.in_features)
        network.set_submodule(last, nn.Identity())
        if self.channels != 3:
            network.set_submodule(first, _widened(convolution, self.channels))
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

    def current_name(self, name: str) -> str:
        """Old files of DenseNet contain names with a dot that is no longer allowed."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)

    def named_file(self, weights: str, download: bool) -> Path:
        """The file in the hub folder of torch, whose name contains the first digits of its checksum."""
        entry = _entry(self.name, weights)
        assert entry is not None
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file = folder / Path(urlparse(entry.url).path).name
        if not file.is_file() and not download:
            raise UserError(
                f"weights '{entry.name}' of {self.name} are not on this machine: download {entry.url} to '{file}', or "
                "set download: true."
            )
        if not file.is_file():
            problem = f"weights '{entry.name}' of {self.name} could not be downloaded from {entry.url}"
            with explained(problem, f"put the file into '{folder}' yourself", OSError, RuntimeError):
                folder.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(entry.url, str(file), progress=False)
        expected, digest = re.search(r"-([0-9a-f]{8,})\.", file.name), sha256(file)
        if expected and not digest.startswith(expected[1]):
            raise UserError(
                f"weights file '{file}' must have a sha256 that starts with {expected[1]}, but it starts with "
                f"{digest[:8]}: the file is damaged; delete it and download {entry.url} again."
            )
        return file


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
