"""metatransfer: meta-learning and transfer learning as LightningModules."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("metatransfer")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

from metatransfer.batches import Episode, Predictions, PredictionTask, SemiSupervisedEpisode
from metatransfer.callbacks import BestCheckpoint, EpisodeFigures, Report
from metatransfer.data import (
    ArrayEpisodes,
    Augmentation,
    CIFARFewShotEpisodes,
    CrossDomainEpisodes,
    EpisodicDataModule,
    FixedShape,
    GlyphEpisodes,
    ImageFolderEpisodes,
    ImbalancedShots,
    Learn2LearnEpisodes,
    MetaDatasetShape,
    OmniglotEpisodes,
    RandomAffine,
    SemiSupervised,
    SinusoidEpisodes,
    Source,
    TableEpisodes,
    TaskShape,
    TensorSource,
    TorchvisionTransforms,
)
from metatransfer.errors import UserError
from metatransfer.methods import (
    ANILModule,
    BOILModule,
    EpisodicModule,
    FOMAMLModule,
    InnerLoopModule,
    LearnedOptimizerModule,
    MAMLModule,
    MAMLPlusPlusModule,
    MetaSGDModule,
    MethodModule,
    Predictor,
    ProtoMAMLModule,
    ProtoNetModule,
    ReptileModule,
)
from metatransfer.metrics import EpisodeMean, EpisodeMetrics
from metatransfer.nn import MLP, Backbone, Conv4, CosineHead, Head, LinearHead, ResNet12

__all__ = [
    "MLP",
    "ANILModule",
    "ArrayEpisodes",
    "Augmentation",
    "BOILModule",
    "Backbone",
    "BestCheckpoint",
    "CIFARFewShotEpisodes",
    "Conv4",
    "CosineHead",
    "CrossDomainEpisodes",
    "Episode",
    "EpisodeFigures",
    "EpisodeMean",
    "EpisodeMetrics",
    "EpisodicDataModule",
    "EpisodicModule",
    "FOMAMLModule",
    "FixedShape",
    "GlyphEpisodes",
    "Head",
    "ImageFolderEpisodes",
    "ImbalancedShots",
    "InnerLoopModule",
    "Learn2LearnEpisodes",
    "LearnedOptimizerModule",
    "LinearHead",
    "MAMLModule",
    "MAMLPlusPlusModule",
    "MetaDatasetShape",
    "MetaSGDModule",
    "MethodModule",
    "OmniglotEpisodes",
    "PredictionTask",
    "Predictions",
    "Predictor",
    "ProtoMAMLModule",
    "ProtoNetModule",
    "RandomAffine",
    "Report",
    "ReptileModule",
    "ResNet12",
    "SemiSupervised",
    "SemiSupervisedEpisode",
    "SinusoidEpisodes",
    "Source",
    "TableEpisodes",
    "TaskShape",
    "TensorSource",
    "TorchvisionTransforms",
    "UserError",
    "__version__",
]
