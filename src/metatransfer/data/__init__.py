"""Sources (where samples come from), samplers (which samples) and data modules (how they are served)."""

from metatransfer.data.augment import Augmentation, RandomAffine
from metatransfer.data.cifar_few_shot_episodes import CIFARFewShotEpisodes
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.glyph_episodes import GlyphEpisodes
from metatransfer.data.glyphs import Glyphs, glyph_from_image, load_glyphs
from metatransfer.data.image_folder_episodes import ImageFolderEpisodes
from metatransfer.data.omniglot_episodes import OmniglotEpisodes
from metatransfer.data.samplers import EpisodeIndices, EpisodeSampler, TaskSampler
from metatransfer.data.sinusoid_episodes import SinusoidEpisodes
from metatransfer.data.sources import RotatedClasses, Source, TensorSource

__all__ = [
    "Augmentation",
    "CIFARFewShotEpisodes",
    "EpisodeIndices",
    "EpisodeSampler",
    "EpisodicDataModule",
    "GlyphEpisodes",
    "Glyphs",
    "ImageFolderEpisodes",
    "OmniglotEpisodes",
    "RandomAffine",
    "RotatedClasses",
    "SinusoidEpisodes",
    "Source",
    "TaskSampler",
    "TensorSource",
    "glyph_from_image",
    "load_glyphs",
]
