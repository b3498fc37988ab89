"""Labelled batches of the training classes, for methods that are trained on samples and tested on episodes."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule

from metatransfer.batches import Episode, LabelledBatch, MetaBatch, PredictionTask
from metatransfer.checks import check_positive
from metatransfer.data.sampling.labelled import LabelledSampler
from metatransfer.data.sampling.loader import BatchLoader, Place
from metatransfer.data.serving.cross_domain_episodes import CrossDomainEpisodes
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError


class ClassBatches(LightningDataModule):
    """Serves the training split of an episodic data module as shuffled labelled batches of all its classes.

    Validation, test and prediction are those of the wrapped data module. An epoch is one pass over the samples; its
    order is a pure function of (seed, epoch), is shared by the processes without overlap, and continues with the next
    batch when a run resumes. Augmentation and transforms are those of the data module; with its ``rotations`` each
    class becomes four, rotated by multiples of 90 degrees.

    Args:
        episodes: the wrapped data module.
        batch_size: samples per batch, in each process.

    Raises:
        UserError: ``episodes`` is something else or generates its tasks, or a number is below 1.
    """

    def __init__(self, episodes: EpisodicDataModule | CrossDomainEpisodes, batch_size: int = 64) -> None:
        super().__init__()
        if not isinstance(episodes, EpisodicDataModule | CrossDomainEpisodes):
            raise UserError(
                "episodes must be a data module of episodes, such as EpisodicDataModule(source=Glyphs()), but is of "
                f"type {type(episodes).__name__}."
            )
        check_positive(batch_size=batch_size)
        self.episodes, self.batch_size = episodes, batch_size
        self._train = episodes.train_data if isinstance(episodes, CrossDomainEpisodes) else episodes

    @cached_property
    def _sampler(self) -> LabelledSampler:
        changes = self._train.processing.changes(training=True)
        return LabelledSampler(self._train.training_source(), self._train.seed, changes, shuffled=True)

    def info(self) -> DataInfo:
        """The description of the wrapped data, with the classes of the training batches."""
        source = self._sampler.source
        return replace(
            self.episodes.info(),
            batch=LabelledBatch,
            num_ways=None,
            class_names=source.class_names,
            class_counts=tuple(source.sizes.tolist()),
        )

    def prepare_data(self) -> None:
        """Lets the wrapped data module download its data."""
        self.episodes.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage."""
        self.episodes.trainer = self.trainer
        if stage in ("fit", None):
            self._sampler  # noqa: B018 - opened now, so that errors come before the training
        for one in {"fit": ("validate",), None: ("validate", "test")}.get(stage, (stage,)):
            self.episodes.setup(one)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped data module."""
        return self.episodes.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the wrapped data module."""
        self.episodes.load_state_dict(state_dict)

    def episode(self, split: str, index: int, name: str | None = None) -> Episode:
        """One episode of the wrapped data module with ``T = 1``; ``name`` selects one of several test sources."""
        if isinstance(self.episodes, CrossDomainEpisodes):
            return self.episodes.episode(split, index, name)
        return self.episodes.episode(split, index)

    def train_dataloader(self) -> BatchLoader[LabelledBatch]:
        """Labelled batches in a new order every epoch, without a last one that is not full.

        Raises:
            UserError: fewer samples than one batch in every process takes.
        """
        sampler, place = self._sampler, Place.of(self.trainer, training=True)
        loader = BatchLoader(
            sampler, len(sampler), self.batch_size,
            drop_last=True, place=place, num_workers=self._train.num_workers,
        )  # fmt: skip
        if len(loader) == 0:
            raise UserError(
                f"batch_size={self.batch_size} in each of {place.world_size} processes is more than the {len(sampler)} "
                "training samples: lower it."
            )
        return loader

    def val_dataloader(self) -> BatchLoader[MetaBatch]:
        """The fixed validation episodes."""
        return self.episodes.val_dataloader()

    def test_dataloader(self) -> BatchLoader[MetaBatch] | list[BatchLoader[MetaBatch]]:
        """The fixed test episodes."""
        return self.episodes.test_dataloader()

    def predict_dataloader(self) -> BatchLoader[PredictionTask]:
        """The one task of ``lightning predict``."""
        return self.episodes.predict_dataloader()

    def protocol(self) -> dict[str, Any]:
        """The protocol of the wrapped data module, with labelled batches in place of training episodes."""
        card = self.episodes.protocol()
        for name in ("train_episode", "tasks_per_batch"):
            card.pop(name, None)
        if "episodes" in card:
            card["episodes"] = {split: count for split, count in card["episodes"].items() if split != "train"}
        source = self._sampler.source
        batches = {"batch_size": self.batch_size, "classes": len(source.class_names), "samples": len(source)}
        return card | {"train_batches": batches}
