"""Plain labelled batches of the training classes, for methods that are trained on samples and tested on episodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from metatransfer.batches import Episode
from metatransfer.checks import check_positive
from metatransfer.data.augment import apply_transforms
from metatransfer.data.cross_domain_episodes import CrossDomainEpisodes
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.labelled_sampler import LabelledSampler, Split
from metatransfer.data.loaders import EpisodeLoader, TaskLoader, training_position
from metatransfer.data.sources import RotatedClasses, Source
from metatransfer.errors import UserError


class ClassBatches(LightningDataModule):
    """The training split of an episodic data module as shuffled batches of samples and labels of all its classes.

    Validation, test and prediction are those of the data module inside. An epoch is one pass over the samples; its
    order is a pure function of (seed, epoch), the processes share it without overlap, and a run that resumes in the
    middle of an epoch goes on with the next batch. Augmentation and transforms are those of the data module; under its
    ``rotations`` each class is four, turned by quarters.

    Args:
        episodes: the data module inside.
        batch_size: samples of a batch, in each process.

    Attributes:
        test_sources: names of the test sources, where the data module inside has several.

    Raises:
        UserError: something else inside, tasks that are regressions, or a number below 1.
    """

    def __init__(self, episodes: EpisodicDataModule | CrossDomainEpisodes, batch_size: int = 64) -> None:
        super().__init__()
        if not isinstance(episodes, EpisodicDataModule | CrossDomainEpisodes):
            raise UserError(
                "episodes must be an episodic data module of this package, such as GlyphEpisodes, or a subclass of "
                f"EpisodicDataModule, but is a {type(episodes).__name__}."
            )
        check_positive(batch_size=batch_size)
        self.episodes = episodes
        self.batch_size = batch_size
        self.train_data = episodes.train_data if isinstance(episodes, CrossDomainEpisodes) else episodes
        if self.train_data.num_targets is not None:
            raise UserError(
                f"{type(self.train_data).__name__} serves regression tasks, which have no classes to train on: give "
                "ClassBatches a data module of labelled samples."
            )
        self.test_sources: tuple[str, ...] = getattr(episodes, "test_sources", ())
        self._sampler: LabelledSampler | None = None

    @property
    def skipped(self) -> dict[str, int]:
        """Samples left out, as the data module inside counts them."""
        return dict(getattr(self.episodes, "skipped", {}))

    @property
    def num_classes(self) -> int:
        """How many classes are trained on."""
        return len(self.sampler().split.source.class_names)

    def sampler(self) -> LabelledSampler:
        """Opens the training split, once.

        Returns:
            What makes its batches.

        Raises:
            UserError: the data module inside generates its tasks.
        """
        if self._sampler is None:
            data = self.train_data
            source = data.source("train")
            if not isinstance(source, Source):
                raise UserError(f"{type(data).__name__}.source must return a Source, not a {type(source).__name__}.")
            if data.rotations["train"] != "none":
                source = RotatedClasses(source)
            transform = partial(apply_transforms, data.transform) if data.transform else None
            self._sampler = LabelledSampler(
                Split(source, np.arange(len(source)), source.class_names), data.seed, transform, shuffled=True
            )
        return self._sampler

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, for networks that are to be built for it."""
        first = self.sampler().episodes(np.array([0]), torch.device("cpu"))
        return tuple(first.x.shape[1:])  # type: ignore[union-attr]  # no texts here

    def prepare_data(self) -> None:
        """Lets the data module inside download what it may."""
        self.episodes.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits that a stage needs.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None`` for all splits.
        """
        self.episodes.trainer = self.trainer
        if stage in ("fit", None):
            self.sampler()
        for one in {"fit": ("validate",), None: ("validate", "test")}.get(stage, (stage,)):
            self.episodes.setup(one)

    def episode(self, split: str, index: int, source: str | None = None) -> Episode:
        """One episode of the data module inside, with ``T = 1``.

        Args:
            split: ``"val"`` or ``"test"``; :meth:`setup` must have opened it.
            index: its number.
            source: name of the test source, where there are several.

        Returns:
            The episode, on the CPU, without augmentation.
        """
        if isinstance(self.episodes, CrossDomainEpisodes):
            return self.episodes.episode(split, index, source)
        return self.episodes.episode(split, index)

    def train_dataloader(self) -> EpisodeLoader:
        """Labelled batches, in another order every epoch; the last one is left out unless it is full.

        Raises:
            UserError: fewer samples than a batch in every process takes.
        """
        sampler, trainer = self.sampler(), self.trainer
        loader = EpisodeLoader(
            sampler,
            episodes=len(sampler.split.source),
            tasks_per_batch=self.batch_size,
            drop_last=True,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            position=partial(training_position, trainer),
            device=lambda: trainer.strategy.root_device if trainer else torch.device("cpu"),
            augmentation=self.train_data.augmentation,
            num_workers=self.train_data.num_workers,
        )
        if len(loader) == 0:
            raise UserError(
                f"batch_size={self.batch_size} in each of {loader.world_size} processes is more than the "
                f"{len(sampler.split.source)} training samples: lower it."
            )
        return loader

    def val_dataloader(self) -> EpisodeLoader:
        """The fixed validation episodes."""
        return self.episodes.val_dataloader()

    def test_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """The fixed test episodes."""
        return self.episodes.test_dataloader()

    def predict_dataloader(self) -> TaskLoader:
        """The one task of ``lightning predict``."""
        return self.episodes.predict_dataloader()

    def info(self) -> Any:  # noqa: ANN401
        """TEMPORARY."""
        from dataclasses import replace

        from metatransfer.batches import LabelledBatch

        names = tuple(self.sampler().split.source.class_names)
        return replace(
            self.episodes.info(), batch=LabelledBatch, num_ways=None, class_names=names,
            sample_shape=self.sample_shape(), skipped=self.skipped,
        )  # fmt: skip

    def protocol(self) -> dict[str, Any]:
        """As of the data module inside, with labelled batches in the place of training episodes."""
        card = self.episodes.protocol()
        for name in ("train_episode", "tasks_per_batch"):
            card.pop(name, None)
        if "episodes" in card:
            card["episodes"] = {split: count for split, count in card["episodes"].items() if split != "train"}
        batches: dict[str, Any] = {"batch_size": self.batch_size}
        if self._sampler is not None:
            source = self._sampler.split.source
            batches |= {"classes": len(source.class_names), "samples": len(source)}
        return card | {"train_batches": batches}
