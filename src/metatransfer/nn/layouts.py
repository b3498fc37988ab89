"""Names of tensors in other libraries' files, translated to those of a network."""

from collections.abc import Mapping

from torch import Tensor

# EfficientNet-PyTorch (left) and timm (right)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_BLOCK = _SQUEEZE | {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
# a block that does not expand has one convolution and one normalisation less
_FLAT_BLOCK = _SQUEEZE | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def with_changes(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with the low-rank changes of LoRA added to the weights of their layers."""
    found = dict(given)
    for layer in [name.removesuffix(".lora_A.weight") for name in given if name.endswith(".lora_A.weight")]:
        parts = [f"{layer}.{part}" for part in ("lora_A.weight", "lora_B.weight", "scale", "base.weight")]
        if all(part in given for part in parts):
            down, up, scale, weight = (found.pop(part) for part in parts)
            found[f"{layer}.weight"] = weight + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
            if f"{layer}.base.bias" in found:
                found[f"{layer}.bias"] = found.pop(f"{layer}.base.bias")
    return found


def translated(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of a network: timm's EfficientNets read files of EfficientNet-PyTorch."""
    if "_conv_stem.weight" not in given or "conv_stem.weight" not in own:
        return dict(given)
    places = list(
        dict.fromkeys(name[: name.index(".", name.index(".", 7) + 1)] for name in own if name[:7] == "blocks.")
    )
    return {_timm_name(name, given, places): value for name, value in given.items()}


def _timm_name(name: str, given: Mapping[str, Tensor], places: list[str]) -> str:
    if not name.startswith("_blocks."):
        part, _, kind = name.partition(".")
        return f"{_OUTER.get(part, part)}.{kind}"
    _, index, part, kind = name.split(".", 3)
    names = _BLOCK if f"_blocks.{index}._expand_conv.weight" in given else _FLAT_BLOCK
    return f"{places[int(index)]}.{names.get(part, part)}.{kind}" if int(index) < len(places) else name
