"""Metric-based meta-learning."""

from metatransfer.methods.metric.protonet import ProtoNetModule
from metatransfer.methods.metric.r2d2 import R2D2Module

__all__ = ["ProtoNetModule", "R2D2Module"]
