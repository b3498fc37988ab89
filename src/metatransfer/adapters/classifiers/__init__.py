"""Classifiers that are fitted to features."""

from metatransfer.adapters.classifiers.feature_classifier import FeatureClassifier, Labelled
from metatransfer.adapters.classifiers.linear_probe import LinearProbe
from metatransfer.adapters.classifiers.linear_svm import LinearSVM
from metatransfer.adapters.classifiers.nearest import NearestClassMean, NearestNeighbors

__all__ = ["FeatureClassifier", "Labelled", "LinearProbe", "LinearSVM", "NearestClassMean", "NearestNeighbors"]
