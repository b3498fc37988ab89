"""Classifiers on the features of a network that stays as it is."""

from metatransfer.methods.feature_cache import cached_features
from metatransfer.methods.features.frozen_features import FrozenFeaturesModule

__all__ = ["FrozenFeaturesModule", "cached_features"]
