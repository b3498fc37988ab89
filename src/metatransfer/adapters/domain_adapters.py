"""All adapters of domains and all importance weights at once, for the command to know them by their short names.

Whoever reads this module waits for scikit-learn: it is imported where one of them is asked for.
"""

from metatransfer.adapters.correlation_alignment import CorrelationAlignment
from metatransfer.adapters.discriminator_weights import DiscriminatorWeights
from metatransfer.adapters.domain_adapter import DomainAdapter
from metatransfer.adapters.geodesic_flow_kernel import GeodesicFlowKernel
from metatransfer.adapters.importance_weighted import ImportanceWeightedClassifier
from metatransfer.adapters.importance_weights import ImportanceWeights
from metatransfer.adapters.joint_distribution_adaptation import JointDistributionAdaptation
from metatransfer.adapters.kernel_mean_matching import KernelMeanMatching
from metatransfer.adapters.kliep import KLIEP
from metatransfer.adapters.subspace_alignment import SubspaceAlignment
from metatransfer.adapters.transfer_component_analysis import TransferComponentAnalysis

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
