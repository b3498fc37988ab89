"""How collections are served: the data modules."""

from metatransfer.data.serving.domain import DomainDataModule
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.over_episodes import ClassBatches, CrossDomainEpisodes
from metatransfer.data.serving.settings import *
from metatransfer.data.serving.settings import __all__ as _settings

__all__ = ["ClassBatches", "CrossDomainEpisodes", "DomainDataModule", "EpisodicDataModule", "LabelledDataModule"]
__all__ += _settings
