"""Plain labelled batches of the training classes, for methods that are trained on samples and tested on episodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from metatransfer.batches import Episode, LabelledBatch
from metatransfer.checks import check_positive
from metatransfer.data.augment import Augmentation, apply_transforms
from metatransfer.data.cross_domain_episodes import CrossDomainEpisodes
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.loaders import EpisodeLoader, TaskLoader, training_position
from metatransfer.data.samplers import SPLITS, Stream, TaskSampler
from metatransfer.data.sources import RotatedClasses, Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys


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
        self._sampler: ClassSampler | None = None

    @property
    def skipped(self) -> dict[str, int]:
        """Samples left out, as the data module inside counts them."""
        return dict(getattr(self.episodes, "skipped", {}))

    @property
    def num_classes(self) -> int:
        """How many classes are trained on."""
        return len(self.sampler().source.class_names)

    def sampler(self) -> ClassSampler:
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
            self._sampler = ClassSampler(source, data.seed, transform)
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
            episodes=len(sampler.source),
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
                f"{len(sampler.source)} training samples: lower it."
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

    def protocol(self) -> dict[str, Any]:
        """As of the data module inside, with labelled batches in the place of training episodes."""
        card = self.episodes.protocol()
        for name in ("train_episode", "tasks_per_batch"):
            card.pop(name, None)
        if "episodes" in card:
            card["episodes"] = {split: count for split, count in card["episodes"].items() if split != "train"}
        batches: dict[str, Any] = {"batch_size": self.batch_size}
        if self._sampler is not None:
            source = self._sampler.source
            batches |= {"classes": len(source.class_names), "samples": len(source)}
        return card | {"train_batches": batches}


class ClassSampler(TaskSampler):
    """Labelled samples in an order of their own in every epoch.

    Args:
        source: where the samples come from.
        seed: part of the key.
        transform: applied to the samples of a batch after augmentation, on the device.
    """

    def __init__(self, source: Source, seed: int, transform: partial[torch.Tensor] | None = None) -> None:
        self.source = source
        self.seed = seed
        self.transform = transform
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """Whether the source is."""
        return self.source.in_memory

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the samples in an epoch.

        Args:
            epoch: its number.

        Returns:
            ``(N,)`` sample indices.
        """
        if epoch != self._epoch:
            key = stream_keys(self.seed, SPLITS.index("train"), Stream.CLASS_BATCHES, np.array([epoch]))
            self._epoch, self._order = epoch, random_permutations(key, len(self.source))[0]
        return self._order

    def episodes(  # type: ignore[override]
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> LabelledBatch:
        """A labelled batch; not a meta-batch, but served in the same way.

        Args:
            indices: ``(N,)`` places in the epochs one after the other, all of one epoch.
            device: where the tensors are wanted.
            augmentation: applied to every sample, with random numbers of its own.

        Returns:
            Samples and labels.
        """
        epoch = int(indices[0]) // len(self.source)
        samples = self.order(epoch)[indices - epoch * len(self.source)]
        x = self.source.read(torch.from_numpy(samples), device)
        if augmentation is not None:
            keys = stream_keys(self.seed, SPLITS.index("train"), Stream.CLASS_BATCHES, indices, 1)
            x = augmentation.batch(x.unsqueeze(1), keys).squeeze(1)  # each sample is a task of one
        if self.transform is not None:
            x = self.transform(x)
        return LabelledBatch(x, torch.from_numpy(self.source.labels[samples]).to(device, non_blocking=True))
