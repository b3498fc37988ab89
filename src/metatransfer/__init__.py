"""metatransfer: meta-learning and transfer learning as LightningModules."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("metatransfer")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

from metatransfer.batches import Episode, Predictions, PredictionTask
from metatransfer.callbacks import BestCheckpoint, EpisodeFigures, Report
from metatransfer.data import (
    Augmentation,
    CIFARFewShotEpisodes,
    EpisodicDataModule,
    GlyphEpisodes,
    ImageFolderEpisodes,
    OmniglotEpisodes,
    RandomAffine,
    SinusoidEpisodes,
    Source,
    TensorSource,
)
from metatransfer.errors import UserError
from metatransfer.methods import EpisodicModule, MAMLModule, MethodModule, Predictor, ProtoNetModule
from metatransfer.metrics import EpisodeMean, EpisodeMetrics
from metatransfer.nn import MLP, Backbone, Conv4, CosineHead, Head, LinearHead, ResNet12

__all__ = [
    "MLP",
    "Augmentation",
    "Backbone",
    "BestCheckpoint",
    "CIFARFewShotEpisodes",
    "Conv4",
    "CosineHead",
    "Episode",
    "EpisodeFigures",
    "EpisodeMean",
    "EpisodeMetrics",
    "EpisodicDataModule",
    "EpisodicModule",
    "GlyphEpisodes",
    "Head",
    "ImageFolderEpisodes",
    "LinearHead",
    "MAMLModule",
    "MethodModule",
    "OmniglotEpisodes",
    "PredictionTask",
    "Predictions",
    "Predictor",
    "ProtoNetModule",
    "RandomAffine",
    "Report",
    "ResNet12",
    "SinusoidEpisodes",
    "Source",
    "TensorSource",
    "UserError",
    "__version__",
]
