"""Building blocks with parameters."""

from metatransfer.nn.backbone import Backbone
from metatransfer.nn.conv4 import Conv4
from metatransfer.nn.domain_discriminator import DomainDiscriminator
from metatransfer.nn.domain_norm import DomainBatchNorm
from metatransfer.nn.gradient_reversal import reverse_gradient
from metatransfer.nn.heads import CosineHead, Head, LinearHead, PerceptronHead
from metatransfer.nn.huggingface_encoder import HuggingFaceEncoder
from metatransfer.nn.layers import Layer, layers_of
from metatransfer.nn.learned_tensors import LearnedTensors
from metatransfer.nn.lenet import LeNet
from metatransfer.nn.mlp import MLP
from metatransfer.nn.raw_features import RawFeatures
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
