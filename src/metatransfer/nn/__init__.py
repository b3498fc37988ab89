"""Building blocks with parameters."""

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
from metatransfer.nn.blocks.domain_discriminator import DomainDiscriminator
from metatransfer.nn.blocks.domain_norm import DomainBatchNorm
from metatransfer.nn.blocks.gradient_reversal import reverse_gradient
from metatransfer.nn.blocks.learned_tensors import LearnedTensors
from metatransfer.nn.heads import CosineHead, Head, LinearHead, PerceptronHead
from metatransfer.nn.layers import Layer, layers_of
from metatransfer.nn.weights import WeightsReport, load_weights

__all__ = [
    "MLP",
    "Backbone",
    "Conv4",
    "CosineHead",
    "DomainBatchNorm",
    "DomainDiscriminator",
    "Head",
    "HuggingFaceEncoder",
    "Layer",
    "LeNet",
    "LearnedTensors",
    "LinearHead",
    "PerceptronHead",
    "RawFeatures",
    "ResNet12",
    "TimmBackbone",
    "TokenAverage",
    "TorchvisionBackbone",
    "WeightsReport",
    "layers_of",
    "load_weights",
    "reverse_gradient",
]
