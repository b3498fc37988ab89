"""How samples become batches: random streams, task shapes, divisions, samplers, augmentation, the one loader."""

from metatransfer.data.sampling.augment import Augmentation, RandomAffine, TorchvisionTransforms
from metatransfer.data.sampling.feature_transforms import RowSum, UnitLength
from metatransfer.data.sampling.shapes import (
    Counts,
    EpisodeSize,
    FixedShape,
    ImbalancedShots,
    MetaDatasetShape,
    SemiSupervised,
    TaskShape,
)

__all__ = [
    "Augmentation",
    "Counts",
    "EpisodeSize",
    "FixedShape",
    "ImbalancedShots",
    "MetaDatasetShape",
    "RandomAffine",
    "RowSum",
    "SemiSupervised",
    "TaskShape",
    "TorchvisionTransforms",
    "UnitLength",
]
