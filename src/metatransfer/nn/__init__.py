"""Building blocks with parameters."""

from metatransfer.nn.backbone import Backbone
from metatransfer.nn.conv4 import Conv4
from metatransfer.nn.heads import CosineHead, Head, LinearHead
from metatransfer.nn.learned_tensors import LearnedTensors
from metatransfer.nn.mlp import MLP
from metatransfer.nn.resnet12 import ResNet12
from metatransfer.nn.weights import WeightsReport, load_weights

__all__ = [
    "MLP",
    "Backbone",
    "Conv4",
    "CosineHead",
    "Head",
    "LearnedTensors",
    "LinearHead",
    "ResNet12",
    "WeightsReport",
    "load_weights",
]
