"""Networks that turn samples into features."""

from metatransfer.nn.backbones.backbone import Backbone
from metatransfer.nn.backbones.convolutional import Conv4, LeNet, ResNet12
from metatransfer.nn.backbones.flat import MLP, PaddedRows, RawFeatures
from metatransfer.nn.backbones.huggingface_encoder import HuggingFaceEncoder
from metatransfer.nn.backbones.timm_backbone import TimmBackbone
from metatransfer.nn.backbones.token_average import TokenAverage
from metatransfer.nn.backbones.torchvision_backbone import TorchvisionBackbone

__all__ = [
    "MLP",
    "Backbone",
    "Conv4",
    "HuggingFaceEncoder",
    "LeNet",
    "PaddedRows",
    "RawFeatures",
    "ResNet12",
    "TimmBackbone",
    "TokenAverage",
    "TorchvisionBackbone",
]
