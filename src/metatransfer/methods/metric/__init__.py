"""Metric-based meta-learning."""

from metatransfer.methods.metric.protonet import ProtoNetModule

__all__ = ["ProtoNetModule"]
