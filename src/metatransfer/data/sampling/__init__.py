"""How samples become batches: random streams, task shapes, samplers, augmentation, the one loader."""

from metatransfer.data.sampling.augment import *
from metatransfer.data.sampling.shapes import *

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
