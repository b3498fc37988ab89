"""Networks that turn samples into features."""

from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.backbones.conv4 import Conv4
from metatransfer.nn.backbones.huggingface_encoder import HuggingFaceEncoder
from metatransfer.nn.backbones.lenet import LeNet
from metatransfer.nn.backbones.mlp import MLP
from metatransfer.nn.backbones.raw_features import RawFeatures
from metatransfer.nn.backbones.resnet12 import ResNet12
from metatransfer.nn.backbones.timm_backbone import TimmBackbone
from metatransfer.nn.backbones.token_average import TokenAverage
from metatransfer.nn.backbones.torchvision_backbone import TorchvisionBackbone

__all__ = [
    "MLP",
    "Backbone",
    "Conv4",
    "HuggingFaceEncoder",
    "LeNet",
    "RawFeatures",
    "ResNet12",
    "TimmBackbone",
    "TokenAverage",
    "TorchvisionBackbone",
]
