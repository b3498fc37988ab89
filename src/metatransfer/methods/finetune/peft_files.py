"""Reads low-rank changes from the files of the package peft."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metatransfer.checks import check_file
from metatransfer.errors import UserError, explained
from metatransfer.nn.blocks import LowRankLayer
from metatransfer.nn.weights import read_weights

_PREFIX = "base_model.model."
# settings that change what the tensors mean, each with its plain value
_PLAIN = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {},
    "alpha_pattern": {},
}  # fmt: skip


class PeftAdapter(NamedTuple):
    """Low-rank changes by the names of their layers in the network that peft was given.

    Attributes:
        folder: of the files.
        rank: of all changes.
        alpha: so that changes are multiplied by ``alpha / rank``.
        dropout: of the inputs.
        changes: tensors ``lora_A`` and ``lora_B`` by layer.
    """

    folder: str
    rank: int
    alpha: float
    dropout: float
    changes: dict[str, dict[str, Tensor]]

    def targets(self, backbone: nn.Module) -> dict[str, str]:
        """The layers of a network by the names in the files, which may begin with the name of an outer model."""
        names = [name for name, _ in backbone.named_modules()]
        return {name: _own_name(name, names, self.folder) for name in self.changes}

    @torch.no_grad()
    def load(self, backbone: nn.Module, targets: dict[str, str]) -> None:
        """Copies the changes into the added layers of a network."""
        for name, own in targets.items():
            layer = backbone.get_submodule(own)
            assert isinstance(layer, LowRankLayer), own
            for part, value in self.changes[name].items():
                weight: Tensor = getattr(layer, part).weight
                if weight.shape != value.shape:
                    raise UserError(
                        f"adapter '{self.folder}' was made for another network: its {part} of layer '{name}' has the "
                        f"shape {tuple(value.shape)}, but here it is {tuple(weight.shape)}: use the network that it "
                        "was trained on."
                    )
                weight.copy_(value)


def read_peft_adapter(folder: str) -> PeftAdapter:
    """Reads a folder that ``save_pretrained`` of peft wrote.

    Raises:
        UserError: a file is missing or damaged, or the adapter is not a plain LoRA.
    """
    config = _read_config(check_file(Path(folder).expanduser() / "adapter_config.json", "adapter file"))
    given = read_weights(check_file(Path(folder).expanduser() / "adapter_model.safetensors", "adapter file"))
    changes: dict[str, dict[str, Tensor]] = {}
    for name, part, value in _changes(given):
        changes.setdefault(name.removeprefix(_PREFIX), {})[part] = value
    if not changes or any(len(parts) != 2 for parts in changes.values()):
        raise UserError(f"adapter '{folder}' must have lora_A and lora_B of each layer, but lacks some: save it again.")
    rank = int(config["r"])
    # peft's rsLoRA divides by the root of the rank
    alpha = config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return PeftAdapter(folder, rank, float(alpha), float(config.get("lora_dropout", 0.0)), changes)


def _read_config(file: Path) -> dict[str, Any]:
    with explained(f"'{file}' is not the JSON of a LoRA adapter", "save it again"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if min(config["r"], config["lora_alpha"]) <= 0:
            raise ValueError("r and lora_alpha must be positive")
    for name, plain in _PLAIN.items():
        if (config.get(name) or plain) != plain:
            raise UserError(
                f"'{file}' has {name}={config[name]!r}, but only plain LoRA adapters with {name}={plain!r} can be "
                "loaded: merge the adapter with peft, and give the merged weights."
            )
    return dict(config)


def _changes(given: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Layer, part and value of each low-rank tensor; what else peft saves, such as a classifier, is left out."""
    for name, value in given.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_B"):
            yield layer, part, value


def _own_name(name: str, names: list[str], folder: str) -> str:
    rest = name
    while rest:
        found = [own for own in names if own == rest or own.endswith(f".{rest}")]
        if len(found) == 1:
            return found[0]
        rest = rest.partition(".")[2] if not found else ""
    raise UserError(
        f"adapter '{folder}' was made for another network: the backbone has no layer '{name}', which it changes: use "
        "the network that it was trained on."
    )
