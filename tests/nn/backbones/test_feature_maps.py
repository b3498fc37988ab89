"""Feature maps, and the features that are pooled or flattened from them."""

import pytest
import torch

from metatransfer import MLP, Conv4, LeNet, ResNet12, TimmBackbone, TokenAverage, TorchvisionBackbone, UserError

OURS = {
    "Conv4": (lambda: Conv4(3, 32, hidden_channels=4), (4, 2, 2), lambda maps: maps.flatten(1)),
    "LeNet": (lambda: LeNet(3, 32, channels=(4, 6)), (6, 5, 5), lambda maps: maps.flatten(1)),
    "ResNet12": (lambda: ResNet12(3, widths=(4, 4, 8, 8)), (8, 2, 2), lambda maps: maps.mean((2, 3))),
}


@pytest.mark.parametrize("name", OURS)
def test_features_are_pooled_or_flattened_maps(name):
    build, shape, pooled = OURS[name]
    network, x = build().eval(), torch.rand(2, 3, 32, 32)
    maps = network.feature_maps(x)
    assert maps.shape == (2, *shape)
    assert torch.equal(pooled(maps), network(x))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "densenet121"])
def test_torchvision(name):
    network, x = TorchvisionBackbone(name).eval(), torch.rand(2, 3, 64, 64)
    maps = network.feature_maps(x)
    assert maps.shape == (2, maps.shape[1], 2, 2) or name == "squeezenet1_1"
    if name == "mobilenet_v3_small":  # a fully connected layer follows the pooling
        assert maps.shape[1] == 576
    else:
        torch.testing.assert_close(maps.mean((2, 3)), network(x))
    assert not any(part._forward_hooks for part in network.modules())


@pytest.mark.parametrize(("name", "channels"), [("resnet10t", 512), ("swin_tiny_patch4_window7_224", 768)])
def test_timm(name, channels):
    pytest.importorskip("timm")
    network = TimmBackbone(name).eval()
    size = network.fixed_size or 64
    x = torch.rand(1, 3, size, size)
    maps = network.feature_maps(x)
    assert maps.shape == (1, channels, size // 32, size // 32)
    torch.testing.assert_close(maps.mean((2, 3)), network(x), rtol=1e-4, atol=1e-5)


OTHERS = {  # built by their test: a large one takes a second
    "MLP": lambda: MLP((3, 8, 8)),
    "TokenAverage": lambda: TokenAverage(5),
    "vit_b_32": lambda: TorchvisionBackbone("vit_b_32", image_size=32),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_have_none(name):
    network = OTHERS[name]()
    with pytest.raises(UserError, match=r"has no feature maps .*: choose a convolutional network"):
        network.feature_maps(torch.rand(1, 3, 32, 32))
