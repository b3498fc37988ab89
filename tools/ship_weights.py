"""Makes the weights that the package ships of a checkpoint: the backbone alone, as safetensors.

lightning fit --config configs/glyphs/pretrain.yaml
python tools/ship_weights.py lightning_logs/version_0/checkpoints/epoch=5-step=2910.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import metatransfer

TARGET = Path(metatransfer.__file__).parent / "nn" / "pretrained" / "conv4_glyphs.safetensors"
PREFIX = "backbone."


def main() -> None:
    """Writes the file and says how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args()
    content = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix(PREFIX): value.contiguous()
        for name, value in content["state_dict"].items()
        if name.startswith(PREFIX)
    }
    options.target.parent.mkdir(exist_ok=True)
    method, data = content["protocol"]["method"], content["protocol"]["data"]
    about = f"{method['name']}, {method['train_classes']} characters of Glyphs {data['data_sha256'][:12]}"
    save_file(weights, options.target, metadata={"trained": about, "epochs": str(content["epoch"] + 1)})
    print(f"{options.target.name}: {len(weights)} tensors, {options.target.stat().st_size:,} bytes, {about}")


if __name__ == "__main__":
    main()
