"""Weights of source samples by how likely they are in the target domain."""

from metatransfer.adapters.importance.discriminator_weights import DiscriminatorWeights
from metatransfer.adapters.importance.importance_weights import ImportanceWeights
from metatransfer.adapters.importance.kernel_mean_matching import KernelMeanMatching
from metatransfer.adapters.importance.kliep import KLIEP
from metatransfer.adapters.importance.weighted_estimator import ImportanceWeightedClassifier

__all__ = [
    "KLIEP",
    "DiscriminatorWeights",
    "ImportanceWeightedClassifier",
    "ImportanceWeights",
    "KernelMeanMatching",
]
