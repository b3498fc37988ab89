"""Transformers that align the features of two domains."""

from metatransfer.adapters.domain.domain_adapter import DomainAdapter
from metatransfer.adapters.domain.subspaces import CorrelationAlignment, GeodesicFlowKernel, SubspaceAlignment
from metatransfer.adapters.domain.transfer_components import JointDistributionAdaptation, TransferComponentAnalysis

__all__ = [
    "CorrelationAlignment",
    "DomainAdapter",
    "GeodesicFlowKernel",
    "JointDistributionAdaptation",
    "SubspaceAlignment",
    "TransferComponentAnalysis",
]
