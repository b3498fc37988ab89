"""Building blocks with parameters."""

from metatransfer.nn.backbone import Backbone
from metatransfer.nn.conv4 import Conv4
from metatransfer.nn.heads import CosineHead, Head, LinearHead
from metatransfer.nn.huggingface_encoder import HuggingFaceEncoder
from metatransfer.nn.layers import Layer, layers_of
from metatransfer.nn.learned_tensors import LearnedTensors
from metatransfer.nn.mlp import MLP
from metatransfer.nn.resnet12 import ResNet12
from metatransfer.nn.timm_backbone import TimmBackbone
from metatransfer.nn.token_average import TokenAverage
from metatransfer.nn.torchvision_backbone import TorchvisionBackbone
from metatransfer.nn.weights import WeightsReport, load_weights

__all__ = [
    "MLP",
    "Backbone",
    "Conv4",
    "CosineHead",
    "Head",
    "HuggingFaceEncoder",
    "Layer",
    "LearnedTensors",
    "LinearHead",
    "ResNet12",
    "TimmBackbone",
    "TokenAverage",
    "TorchvisionBackbone",
    "WeightsReport",
    "layers_of",
    "load_weights",
]
