"""Methods without a gradient through the network: they are fitted to features."""

from metatransfer.adapters.feature_classifiers import (
    FeatureClassifier,
    LinearProbe,
    LinearSVM,
    NearestClassMean,
    NearestNeighbors,
)

__all__ = ["FeatureClassifier", "LinearProbe", "LinearSVM", "NearestClassMean", "NearestNeighbors"]
