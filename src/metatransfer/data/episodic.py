"""The base of all data modules that serve episodes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor

from metatransfer.batches import Episode, PredictionTask
from metatransfer.checks import check_episode_shape, check_positive
from metatransfer.data.augment import Augmentation
from metatransfer.data.folders import prediction_task
from metatransfer.data.loaders import EpisodeLoader, TaskLoader
from metatransfer.data.samplers import SPLITS, EpisodeSampler, TaskSampler
from metatransfer.data.sources import RotatedClasses, Source
from metatransfer.errors import UserError

_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": (), None: SPLITS}


class EpisodicDataModule(LightningDataModule):
    """Serves n-way k-shot episodes of any labelled data.

    A subclass says where the samples of a split come from (:meth:`source`) and, for ``lightning predict``, how it looks
    at an image file (:meth:`convert_image`); it may set the attributes below in its constructor. Episodes are a pure
    function of (seed, split, index): the same for any number of workers or processes and after a resume. Every training
    epoch has new ones; those of validation and test are fixed.

    Attributes:
        rotations: for each split ``"none"``, ``"classes"`` (each class four times, turned by quarters, as classes of
            their own) or ``"per_class"`` (each class turned at random in each episode).
        num_targets: size of the targets where tasks are regressions, ``None`` where they are classifications.
        group_by: whether all classes of an episode come from one group of the source (alphabet, superclass).

    Args:
        num_ways: classes of an episode.
        num_shots: support samples of each class.
        num_queries: query samples of each class.
        tasks_per_batch: episodes of a meta-batch, in each process.
        eval_num_ways: classes of an episode in validation and test; as in training where left out.
        eval_num_shots: support samples of each class in validation and test; as in training where left out.
        eval_num_queries: query samples of each class in validation and test; as in training where left out.
        train_episodes: episodes of a training epoch, over all processes.
        val_episodes: episodes of the validation.
        test_episodes: episodes of the test.
        seed: which episodes; independent of the seed of the weights.
        augmentation: random changes of the training samples, e.g. ``RandomAffine``.
        num_workers: processes that read data which is not held in memory.
        support: folder ``<label>/<image>`` of labelled examples, for ``lightning predict`` only.
        query: folder of images to label, for ``lightning predict`` only.

    Raises:
        UserError: a number below 1, or the base itself instead of a subclass.
    """

    num_targets: ClassVar[int | None] = None

    def __init__(
        self,
        num_ways: int = 5,
        num_shots: int = 1,
        num_queries: int = 15,
        tasks_per_batch: int = 16,
        eval_num_ways: int | None = None,
        eval_num_shots: int | None = None,
        eval_num_queries: int | None = None,
        train_episodes: int = 3200,
        val_episodes: int = 200,
        test_episodes: int = 600,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        support: str | None = None,
        query: str | None = None,
    ) -> None:
        super().__init__()
        if type(self) is EpisodicDataModule:
            raise UserError(
                "EpisodicDataModule is a base and has no data: name a data module such as GlyphEpisodes, or your own "
                "subclass with source(split)."
            )
        check_positive(
            num_ways=num_ways, num_shots=num_shots, num_queries=num_queries, tasks_per_batch=tasks_per_batch,
            eval_num_ways=eval_num_ways, eval_num_shots=eval_num_shots, eval_num_queries=eval_num_queries,
            train_episodes=train_episodes, val_episodes=val_episodes, test_episodes=test_episodes,
        )  # fmt: skip
        if num_workers < 0:
            raise UserError(f"num_workers must be 0 or more, but is {num_workers}.")
        self.num_ways, self.num_shots, self.num_queries = num_ways, num_shots, num_queries
        self.eval_num_ways = eval_num_ways or num_ways
        self.eval_num_shots = eval_num_shots or num_shots
        self.eval_num_queries = eval_num_queries or num_queries
        self.tasks_per_batch = tasks_per_batch
        self.num_episodes = {"train": train_episodes, "val": val_episodes, "test": test_episodes}
        self.seed = seed
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.support_folder, self.query_folder = support, query
        self.rotations: dict[str, str] = {}
        self.group_by = False
        self.samplers: dict[str, TaskSampler] = {}
        self.prediction_task: PredictionTask | None = None

    # ---- what a subclass says

    def source(self, split: str) -> Source:
        """The labelled samples of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``; their classes are disjoint.

        Returns:
            A :class:`~metatransfer.data.Source`.

        Raises:
            UserError: the subclass defines neither this nor :meth:`sampler`.
        """
        raise UserError(f"{type(self).__name__} must define source(split), or sampler(split) for generated tasks.")

    def sampler(self, split: str) -> TaskSampler:
        """What draws the episodes of a split; override it for tasks that are generated, not drawn from samples.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            By default an :class:`~metatransfer.data.EpisodeSampler` over :meth:`source`.

        Raises:
            UserError: :meth:`source` returns something else, or the episodes are impossible.
        """
        source, shape, rotation = self.source(split), self.shape(split), self.rotations.get(split, "none")
        if not isinstance(source, Source):
            raise UserError(
                f"{type(self).__name__}.source must return a Source, such as TensorSource(data, labels, class_names, "
                f"name), but returned {type(source).__name__}."
            )
        if rotation == "classes":
            source = RotatedClasses(source)
        where = f"{type(self).__name__} ({split} split)"
        prefix = "" if split == "train" else "eval_"
        check_episode_shape(source.sizes, source.class_names, where=where, prefix=prefix, **shape)
        return EpisodeSampler(
            source,
            split,
            self.seed,
            within_groups=self.group_by,
            turn_classes=rotation == "per_class",
            **shape,
        )

    def convert_image(self, image: Image.Image) -> Tensor:
        """A sample made of any image file, as those of the training data look.

        Args:
            image: as opened.

        Returns:
            ``(C, H, W)`` float32 in [0, 1].

        Raises:
            UserError: the data is not made of images.
        """
        raise UserError(f"{type(self).__name__} does not say how to read image files, so it cannot predict folders.")

    # ---- what it serves

    def shape(self, split: str) -> dict[str, int]:
        """``num_ways``, ``num_shots`` and ``num_queries`` of a split's episodes.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The three numbers by name.
        """
        prefix = "" if split == "train" else "eval_"
        return {name: getattr(self, prefix + name) for name in ("num_ways", "num_shots", "num_queries")}

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits that a stage needs and checks that their episodes are possible.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None`` for all splits.

        Raises:
            UserError: episodes that cannot be drawn, or folders that cannot be read.
        """
        for split in _STAGE_SPLITS[stage]:
            if split in self.samplers:
                continue
            self.samplers[split] = self.sampler(split)
        if stage == "predict":
            if self.support_folder is None or self.query_folder is None:
                raise UserError(
                    "predict needs two folders: --data.support <label>/<image> with examples of every label, and "
                    "--data.query with the images to label."
                )
            self.prediction_task = prediction_task(self.support_folder, self.query_folder, self.convert_image)

    def episode(self, split: str, index: int) -> Episode:
        """One episode as the methods see it in evaluation, with ``T = 1``.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``; :meth:`setup` must have opened it.
            index: its number.

        Returns:
            The episode, on the CPU, without augmentation.
        """
        return self.samplers[split].episodes(np.array([index]), torch.device("cpu"))

    def train_dataloader(self) -> EpisodeLoader:
        """Training episodes, other ones every epoch.

        Raises:
            UserError: an epoch that is too short for a single meta-batch in every process.
        """
        loader = self._loader("train")
        if len(loader) == 0:
            raise UserError(
                f"train_episodes={self.num_episodes['train']} is less than one meta-batch: tasks_per_batch="
                f"{self.tasks_per_batch} in each of {loader.world_size} processes; raise one or lower the other."
            )
        return loader

    def val_dataloader(self) -> EpisodeLoader:
        """The fixed validation episodes."""
        return self._loader("val")

    def test_dataloader(self) -> EpisodeLoader:
        """The fixed test episodes."""
        return self._loader("test")

    def predict_dataloader(self) -> TaskLoader:
        """The one task of ``lightning predict``."""
        assert self.prediction_task is not None
        return TaskLoader(self.prediction_task)

    def protocol(self) -> dict[str, Any]:
        """What must stand beside every number measured on this data."""
        return {
            "data": type(self).__name__,
            "train_episode": self.shape("train"),
            "eval_episode": self.shape("test"),
            "tasks_per_batch": self.tasks_per_batch,
            "episodes": dict(self.num_episodes),
            "episode_seed": self.seed,
            "augmentation": repr(self.augmentation) if self.augmentation is not None else "none",
            "rotations": {split: self.rotations.get(split, "none") for split in SPLITS},
            "within_groups": self.group_by,
        }

    def _loader(self, split: str) -> EpisodeLoader:
        if split not in self.samplers:  # asked for without a Trainer
            self.samplers[split] = self.sampler(split)
        trainer = self.trainer
        if trainer and split != "train" and self.num_episodes[split] < trainer.world_size:
            raise UserError(
                f"{split}_episodes={self.num_episodes[split]} leaves some of {trainer.world_size} processes without "
                "any: raise it to one for each at least."
            )
        return EpisodeLoader(
            self.samplers[split],
            episodes=self.num_episodes[split],
            tasks_per_batch=self.tasks_per_batch,
            drop_last=split == "train",
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            position=self._position if split == "train" else lambda: (0, 0),
            device=lambda: trainer.strategy.root_device if trainer else torch.device("cpu"),
            augmentation=self.augmentation if split == "train" else None,
            num_workers=self.num_workers,
        )

    def _position(self) -> tuple[int, int]:
        """Where training stands: the Trainer's own count survives interruption at any point of a batch."""
        if self.trainer is None:
            return 0, 0
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return 0, 0  # the same episodes in every epoch, as asked for
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return self.trainer.current_epoch, progress.ready
