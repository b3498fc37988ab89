"""How collections are served: the data modules."""

from metatransfer.data.serving.copy_task import CopyTask
from metatransfer.data.serving.domain import DomainDataModule
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data.serving.labelled import LabelledDataModule
from metatransfer.data.serving.over_episodes import ClassBatches, CrossDomainEpisodes
from metatransfer.data.serving.settings import *
from metatransfer.data.serving.settings import __all__ as _settings

__all__ = ["ClassBatches", "CopyTask", "CrossDomainEpisodes", "DomainDataModule", "EpisodicDataModule"]
__all__ += ["LabelledDataModule"]
__all__ += _settings
