"""Methods without a gradient through the network: they are fitted to features."""

from metatransfer.adapters.feature_classifier import FeatureClassifier, Labelled
from metatransfer.adapters.linear_probe import LinearProbe
from metatransfer.adapters.linear_svm import LinearSVM
from metatransfer.adapters.nearest import NearestClassMean, NearestNeighbors

__all__ = ["FeatureClassifier", "Labelled", "LinearProbe", "LinearSVM", "NearestClassMean", "NearestNeighbors"]
