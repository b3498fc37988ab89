"""Collections (which data), and data modules (how they are served)."""

from metatransfer.data.collections import (
    MNIST,
    MNISTM,
    SVHN,
    SYN,
    USPS,
    Arrays,
    CIFARFewShot,
    Digits,
    Glyphs,
    ImageFolder,
    ImageTable,
    Learn2Learn,
    Omniglot,
    Sinusoids,
    Table,
    Texts,
    TorchvisionDataset,
    TypesetDigits,
    describe_path,
    open_path,
)
from metatransfer.data.sampling.augment import Augmentation, RandomAffine, TorchvisionTransforms
from metatransfer.data.sampling.division import RandomDivision
from metatransfer.data.sampling.episodes import EpisodeIndices, EpisodeSampler
from metatransfer.data.sampling.feature_transforms import RowSum
from metatransfer.data.sampling.sampler import Sampler
from metatransfer.data.sampling.saved import SavedEpisodes, save_episodes
from metatransfer.data.sampling.shaped import ShapedSampler
from metatransfer.data.sampling.shapes import (
    EpisodeSize,
    FixedShape,
    ImbalancedShots,
    MetaDatasetShape,
    SemiSupervised,
    TaskShape,
)
from metatransfer.data.serving.base import open_paths_by
from metatransfer.data.serving.class_batches import ClassBatches
from metatransfer.data.serving.cross_domain_episodes import CrossDomainEpisodes
from metatransfer.data.serving.domain import DomainDataModule
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.settings import (
    Division,
    DomainDivision,
    EpisodeFiles,
    Episodes,
    EvalTask,
    PredictFolders,
    Processing,
    Task,
)
from metatransfer.data.sources import (
    Collection,
    Encoder,
    LazyParts,
    RotatedClasses,
    Source,
    TaskGenerator,
    TensorSource,
)

open_paths_by(open_path)  # a path may be given where a collection is expected

__all__ = [
    "MNIST",
    "MNISTM",
    "SVHN",
    "SYN",
    "USPS",
    "Arrays",
    "Augmentation",
    "CIFARFewShot",
    "ClassBatches",
    "Collection",
    "CrossDomainEpisodes",
    "Digits",
    "Division",
    "DomainDataModule",
    "DomainDivision",
    "Encoder",
    "EpisodeFiles",
    "EpisodeIndices",
    "EpisodeSampler",
    "EpisodeSize",
    "Episodes",
    "EpisodicDataModule",
    "EvalTask",
    "FixedShape",
    "Glyphs",
    "ImageFolder",
    "ImageTable",
    "ImbalancedShots",
    "LabelledDataModule",
    "LazyParts",
    "Learn2Learn",
    "MetaDatasetShape",
    "Omniglot",
    "PredictFolders",
    "Processing",
    "RandomAffine",
    "RandomDivision",
    "RotatedClasses",
    "RowSum",
    "Sampler",
    "SavedEpisodes",
    "SemiSupervised",
    "ShapedSampler",
    "Sinusoids",
    "Source",
    "Table",
    "Task",
    "TaskGenerator",
    "TaskShape",
    "TensorSource",
    "Texts",
    "TorchvisionDataset",
    "TorchvisionTransforms",
    "TypesetDigits",
    "describe_path",
    "open_path",
    "save_episodes",
]
