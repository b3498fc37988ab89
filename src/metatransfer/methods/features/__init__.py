"""Classifiers on the features of a network that stays as it is."""

from metatransfer.methods.features.frozen_features import FrozenFeaturesModule
from metatransfer.methods.fitted import cached_features

__all__ = ["FrozenFeaturesModule", "cached_features"]
