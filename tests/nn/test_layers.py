"""Layers of own, torchvision's, timm's and Hugging Face's networks, from input to output."""

import pytest
import torch
import torchvision
from torch import nn

from metatransfer.nn import MLP, Conv4, ResNet12
from metatransfer.nn.layers import layers_of

FAMILIES = {  # with the classifier, which a backbone has not
    "resnet18": (10, "conv1", "layer1.0", "fc"),
    "vgg11": (11, "features.0", "features.3", "classifier.6"),
    "mobilenet_v3_small": (15, "features.0", "features.1", "classifier.3"),
    "efficientnet_b0": (19, "features.0", "features.1.0", "classifier.1"),
    "vit_b_16": (14, "conv_proj", "encoder.layers.encoder_layer_0", "heads.head"),
    "convnext_tiny": (23, "features.0", "features.1.0", "classifier.2"),
    "swin_t": (17, "features.0.0", "features.1.0", "head"),
    "densenet121": (9, "features.conv0", "features.denseblock1", "classifier"),
    "googlenet": (13, "conv1", "conv2", "fc"),
}


def accounted(network):
    """The layers, after a check that every parameter is in one and in order."""
    layers = layers_of(network)
    named = dict(network.named_parameters())
    held = [name for layer in layers for name in layer.parameters]
    assert sorted(held) == sorted(named)
    assert all(layer.parameters[name] is named[name] for layer in layers for name in layer.parameters)
    modules = [id(module) for layer in layers for module in layer.modules]
    assert len(modules) == len(set(modules))
    inside = {id(part) for layer in layers for module in layer.modules for part in module.modules()}
    stateful = [m for m in network.modules() if not list(m.children())]
    assert {id(module) for module in stateful} <= inside  # dropout and statistics too
    return layers


def kinds(layer):
    return [type(module).__name__ for module in layer.modules]


def test_own_networks():
    layers = accounted(Conv4(1, 28, 8, dropout=0.1))
    assert [layer.name for layer in layers] == ["layers.0", "layers.5", "layers.10", "layers.15"]
    assert kinds(layers[0]) == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU", "Dropout2d"]
    assert list(layers[1].parameters) == [f"layers.{part}" for part in ("5.weight", "5.bias", "6.weight", "6.bias")]
    assert [layer.name for layer in accounted(ResNet12(1, (4, 4, 4, 4)))] == [f"blocks.{index}" for index in range(4)]
    mlp = accounted(MLP((3,), (4, 5, 6), norm=True))
    assert [kinds(layer) for layer in mlp] == [
        ["Flatten", "Linear", "BatchNorm1d", "ReLU"],
        *[["Linear", "BatchNorm1d", "ReLU"]] * 2,
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision(name):
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        layers = accounted(torchvision.models.get_model(name, **settings))
    count, *names = FAMILIES[name]
    assert len(layers) == count
    assert [layers[0].name, layers[1].name, layers[-1].name] == names
    if name == "resnet18":
        assert kinds(layers[0]) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    if name == "vit_b_16":
        assert next(iter(layers[0].parameters)) == "class_token"
        assert "encoder.pos_embedding" in layers[0].parameters
        assert "encoder.ln.weight" in layers[-2].parameters


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny_patch16_224", 13), ("resnet18", 9), ("tf_efficientnet_lite0", 18)]
)
def test_timm(name, count):
    timm = pytest.importorskip("timm")
    layers = accounted(timm.create_model(name, num_classes=0))  # not on "meta", which timm before 1.0.16 cannot do
    assert len(layers) == count
    if name.startswith("vit"):
        assert {"cls_token", "pos_embed"} < layers[0].parameters.keys()
        assert "norm.weight" in layers[-1].parameters


def test_bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    for vocabulary in (50, 5000):  # the encoder need not be most of the network
        config = transformers.BertConfig(vocab_size=vocabulary, **sizes)
        layers = accounted(transformers.BertModel(config))
        assert [layer.name for layer in layers] == ["embeddings", *(f"encoder.layer.{i}" for i in range(3)), "pooler"]
        assert len(accounted(transformers.BertModel(config, add_pooling_layer=False))) == 4


def test_words_and_positions_are_one_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.positions, self.dropout = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Dropout()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    layers = accounted(Model())
    assert [layer.name for layer in layers] == ["words", "blocks.0", "blocks.1"]
    assert kinds(layers[0]) == ["Embedding", "Embedding", "Dropout"]


def test_blocks_beside_others_of_their_kind_are_not_opened():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Block(), Block()

    assert [layer.name for layer in accounted(Model())] == ["one", "two"]
    assert [layer.name for layer in accounted(nn.Sequential(Block(), Block()))] == ["0", "1"]


def test_shared_and_unusual():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    layers = accounted(nn.Sequential(first, nn.Linear(4, 4), last))
    assert [list(layer.parameters) for layer in layers] == [
        ["0.weight", "0.bias"],
        ["1.weight", "1.bias"],
        ["2.bias"],
    ]
    last.bias = first.bias
    layers = layers_of(nn.Sequential(first, nn.Linear(4, 4), last))
    assert [layer.name for layer in layers] == ["0", "1"]
    assert layers[1].modules[-1] is last  # nothing of its own to learn
    assert len(layers_of(nn.Sequential(first, nn.ReLU(), first))) == 1
    leading = accounted(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)))
    assert list(leading[0].parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert leading[0].modules[0].num_features == 4
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    layers = layers_of(nn.Sequential(nn.Conv2d(1, 4, 1), frozen, nn.Conv2d(4, 4, 1)))
    assert [len(layer.modules) for layer in layers] == [2, 1]
    assert [layer.name for layer in layers_of(nn.Linear(2, 3))] == [""]
    assert len(layers_of(nn.BatchNorm1d(3))) == 1
    assert layers_of(nn.Sequential(nn.Flatten())) == []
