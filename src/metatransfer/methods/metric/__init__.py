"""Metric-based meta-learning."""

from metatransfer.methods.metric.feat import FEATModule
from metatransfer.methods.metric.gaussian_proto_net import GaussianProtoNetModule
from metatransfer.methods.metric.matching_net import MatchingNetModule
from metatransfer.methods.metric.meta_baseline import MetaBaselineModule
from metatransfer.methods.metric.meta_opt_net import MetaOptNetModule
from metatransfer.methods.metric.protonet import ProtoNetModule
from metatransfer.methods.metric.r2d2 import R2D2Module
from metatransfer.methods.metric.relation_net import RelationNetModule
from metatransfer.methods.metric.siamese import SiameseModule

__all__ = [
    "FEATModule",
    "GaussianProtoNetModule",
    "MatchingNetModule",
    "MetaBaselineModule",
    "MetaOptNetModule",
    "ProtoNetModule",
    "R2D2Module",
    "RelationNetModule",
    "SiameseModule",
]
