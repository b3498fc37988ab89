"""Sources (where samples come from), samplers (which samples) and data modules (how they are served)."""

from metatransfer.data.array_data import ArrayDataModule
from metatransfer.data.array_episodes import ArrayEpisodes
from metatransfer.data.augment import Augmentation, RandomAffine, TorchvisionTransforms
from metatransfer.data.cifar_few_shot_episodes import CIFARFewShotEpisodes
from metatransfer.data.class_batches import ClassBatches
from metatransfer.data.cross_domain_episodes import CrossDomainEpisodes
from metatransfer.data.digit_sets import (
    MNISTDataModule,
    MNISTMDataModule,
    SVHNDataModule,
    SYNDataModule,
    USPSDataModule,
)
from metatransfer.data.digits_data import DigitsDataModule
from metatransfer.data.domain import DomainDataModule
from metatransfer.data.episode_files import SavedEpisodes, save_episodes
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.feature_transforms import RowSum
from metatransfer.data.glyph_episodes import GlyphEpisodes
from metatransfer.data.glyphs import Glyphs, glyph_from_image, load_glyphs
from metatransfer.data.image_csv_data import ImageCSVDataModule
from metatransfer.data.image_folder_data import ImageFolderDataModule
from metatransfer.data.image_folder_episodes import ImageFolderEpisodes
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.labelled_sampler import Split
from metatransfer.data.learn2learn_episodes import Learn2LearnEpisodes
from metatransfer.data.omniglot_episodes import OmniglotEpisodes
from metatransfer.data.samplers import EpisodeIndices, EpisodeSampler, TaskSampler
from metatransfer.data.shaped_sampler import ShapedSampler
from metatransfer.data.shapes import (
    EpisodeSize,
    FixedShape,
    ImbalancedShots,
    MetaDatasetShape,
    SemiSupervised,
    TaskShape,
)
from metatransfer.data.sinusoid_episodes import SinusoidEpisodes
from metatransfer.data.sources import RotatedClasses, Source, TensorSource
from metatransfer.data.table_episodes import TableEpisodes
from metatransfer.data.text_data import TextDataModule
from metatransfer.data.torchvision_data import TorchvisionDataModule
from metatransfer.data.typeset_digits import TypesetDigitsDataModule

__all__ = [
    "ArrayDataModule",
    "ArrayEpisodes",
    "Augmentation",
    "CIFARFewShotEpisodes",
    "ClassBatches",
    "CrossDomainEpisodes",
    "DigitsDataModule",
    "DomainDataModule",
    "EpisodeIndices",
    "EpisodeSampler",
    "EpisodeSize",
    "EpisodicDataModule",
    "FixedShape",
    "GlyphEpisodes",
    "Glyphs",
    "ImageCSVDataModule",
    "ImageFolderDataModule",
    "ImageFolderEpisodes",
    "ImbalancedShots",
    "LabelledDataModule",
    "Learn2LearnEpisodes",
    "MNISTDataModule",
    "MNISTMDataModule",
    "MetaDatasetShape",
    "OmniglotEpisodes",
    "RandomAffine",
    "RotatedClasses",
    "RowSum",
    "SVHNDataModule",
    "SYNDataModule",
    "SavedEpisodes",
    "SemiSupervised",
    "ShapedSampler",
    "SinusoidEpisodes",
    "Source",
    "Split",
    "TableEpisodes",
    "TaskSampler",
    "TaskShape",
    "TensorSource",
    "TextDataModule",
    "TorchvisionDataModule",
    "TorchvisionTransforms",
    "TypesetDigitsDataModule",
    "USPSDataModule",
    "glyph_from_image",
    "load_glyphs",
    "save_episodes",
]
