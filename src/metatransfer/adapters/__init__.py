"""Methods that are fitted to features at once, without a gradient through the network."""

from metatransfer.adapters.feature_classifier import FeatureClassifier, Labelled
from metatransfer.adapters.linear import LinearProbe, LinearSVM
from metatransfer.adapters.nearest import NearestClassMean, NearestNeighbors

__all__ = ["FeatureClassifier", "Labelled", "LinearProbe", "LinearSVM", "NearestClassMean", "NearestNeighbors"]
