"""All estimators that follow scikit-learn: adapters of domains and importance weights.

It is imported only where one of them is used, because importing scikit-learn takes a second.
"""

from metatransfer.adapters.domain.correlation_alignment import CorrelationAlignment
from metatransfer.adapters.domain.domain_adapter import DomainAdapter
from metatransfer.adapters.domain.geodesic_flow_kernel import GeodesicFlowKernel
from metatransfer.adapters.domain.joint_distribution_adaptation import JointDistributionAdaptation
from metatransfer.adapters.domain.subspace_alignment import SubspaceAlignment
from metatransfer.adapters.domain.transfer_component_analysis import TransferComponentAnalysis
from metatransfer.adapters.importance.discriminator_weights import DiscriminatorWeights
from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.adapters.importance.kernel_mean_matching import KernelMeanMatching
from metatransfer.adapters.importance.kliep import KLIEP
from metatransfer.adapters.importance.weighted_estimator import ImportanceWeightedClassifier

__all__ = [
    "KLIEP",
    "CorrelationAlignment",
    "DiscriminatorWeights",
    "DomainAdapter",
    "GeodesicFlowKernel",
    "ImportanceWeightedClassifier",
    "ImportanceWeights",
    "JointDistributionAdaptation",
    "KernelMeanMatching",
    "SubspaceAlignment",
    "TransferComponentAnalysis",
]
