"""Episodes of any collection."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metatransfer.batches import Episode, MetaBatch, PredictionTask, Tokens, episodes_of
from metatransfer.data.sampling.augment import apply_transforms
from metatransfer.data.sampling.episodes import EpisodeSampler, GeneratedSampler, ShapedSampler
from metatransfer.data.sampling.loader import BatchLoader, OneItem
from metatransfer.data.sampling.saved import PublishedTrials, SavedEpisodes, save_episodes
from metatransfer.data.sampling.shapes import FixedShape
from metatransfer.data.serving.base import STAGE_SPLITS, CollectionDataModule
from metatransfer.data.serving.folders import prediction_task
from metatransfer.data.serving.settings import (
    Division,
    EpisodeFiles,
    Episodes,
    EvalTask,
    PredictFolders,
    Processing,
    Rotation,
    Task,
)
from metatransfer.data.serving.splits import Splits, class_count, class_splits, generator_of
from metatransfer.data.sources import SPLITS, Collection, RotatedClasses, Source, TaskGenerator, encoded
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError

_Sampler = EpisodeSampler | GeneratedSampler


class EpisodicDataModule(CollectionDataModule):
    """Serves n-way k-shot episodes of any collection.

    Classes of training, validation and test are disjoint: if the collection does not assign classes to splits, they are
    divided at random, and each split gets at least the classes of one episode. Episodes are a pure function of (seed,
    split, index): they do not depend on the number of workers or processes or on a resume. Every training epoch has new
    episodes; those of validation and test are fixed::

        data:
          class_path: EpisodicDataModule
          init_args:
            source: Glyphs
            task: {num_ways: 5, num_shots: 1, num_queries: 5}
            eval_task: {num_queries: 15}
            episodes: {train: 640, val: 200, test: 600, per_batch: 8}

    Args:
        source: a collection, or the path of a folder or file.
        task: size of the training episodes.
        eval_task: size of the validation and test episodes; defaults to ``task``.
        episodes: number of episodes; and a seed for those of training, if they should have another than the rest.
        division: division of the classes, if the collection does not divide them.
        processing: augmentation, transforms and rotations.
        files: episodes stored in files.
        predict: folders for ``lightning predict``.
        seed: seed of the episodes; independent of the seed of the weights.
        num_workers: number of worker processes for data that is not held in memory.

    Raises:
        UserError: an invalid value, or ``processing.mix``, which is for labelled batches.
    """

    def __init__(
        self,
        source: Collection | str,
        task: Task = Task(),
        eval_task: EvalTask = EvalTask(),
        episodes: Episodes = Episodes(),
        division: Division = Division(),
        processing: Processing = Processing(),
        files: EpisodeFiles = EpisodeFiles(),
        predict: PredictFolders = PredictFolders(),
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(source, processing, seed, num_workers)
        if processing.mix is not None:
            raise UserError("processing.mix is for labelled batches, but these are episodes: leave it out.")
        evaluation = eval_task.after(task)
        self.tasks = {"train": task, "val": evaluation, "test": evaluation}
        self.num_episodes = {"train": episodes.train, "val": episodes.val, "test": episodes.test}
        self.tasks_per_batch = episodes.per_batch
        self.seeds = dict.fromkeys(SPLITS, seed)
        if episodes.train_seed is not None:
            self.seeds["train"] = episodes.train_seed
        self.files, self.predict = files, predict
        self.division = division
        self._samplers: dict[str, _Sampler] = {}
        self._prediction: PredictionTask | None = None

    # ---- opening

    @cached_property
    def _splits(self) -> Splits[Source | TaskGenerator]:
        ways = self.tasks["train"].num_ways, self.tasks["test"].num_ways
        return class_splits(self.collection, self.division, *ways)

    def _training(self) -> Source:
        source = self._splits.part("train")
        assert isinstance(source, Source)  # only samples have an encoder
        return source

    @property
    def rotations(self) -> dict[str, Rotation]:
        """How the classes of each split are rotated."""
        return self.processing.rotations_of(self.collection.rotations)

    def _within_groups(self, split: str) -> bool:
        given = self.tasks[split].within_groups
        return self.collection.within_groups if given is None else given

    def training_source(self) -> Source:
        """The training samples, encoded, with four times as many classes under ``rotations``."""
        source = self._splits.part("train")
        if isinstance(source, TaskGenerator):
            raise UserError(
                f"{type(self.collection).__name__} generates its tasks, which have no classes to train on: give a "
                "collection of labelled samples."
            )
        source = encoded(source, self.encoder)
        return RotatedClasses(source) if self.rotations["train"] != "none" else source

    def open(self, split: str) -> _Sampler:
        """The sampler of a split; on first use, checks that episodes can be drawn, and exports them if configured."""
        if split not in self._samplers:
            source = self._splits.part(split)
            self._samplers[split] = (
                self._generated(source, split) if isinstance(source, TaskGenerator) else self._drawn(source, split)
            )
        return self._samplers[split]

    def _drawn(self, source: Source, split: str) -> EpisodeSampler:
        """The sampler of a split, or its file of episodes."""
        source, rotation = encoded(source, self.encoder), self.rotations[split]
        if rotation == "classes":
            source = RotatedClasses(source)
        size, shape = self.tasks[split].size, self.tasks[split].kind
        where = f"{type(self.collection).__name__} ({split} split)"
        prefix = "task." if split == "train" else "eval_task."
        source.labels  # noqa: B018 - raises an error for targets that are not classes
        if source.trials is not None:
            return self._published(source, split)
        shape.check(source.sizes, source.class_names, size, where, prefix)
        fixed = type(shape) is FixedShape
        sampler = (EpisodeSampler if fixed else ShapedSampler)(
            source, split, self.seeds[split], size, shape=shape, within_groups=self._within_groups(split),
            turn_classes=rotation == "per_class", changes=self.processing.changes(training=split == "train"),
        )  # fmt: skip
        if (path := self.files.path(split)) is not None:
            sampler = saved = SavedEpisodes(sampler, path, size if fixed else None)
            self.num_episodes[split] = saved.count
        if self.files.export and split != "train" and (self.trainer is None or self.trainer.is_global_zero):
            save_episodes(Path(self.files.export, f"{split}.npz"), sampler, self.num_episodes[split])
        return sampler

    def _published(self, source: Source, split: str) -> PublishedTrials:
        trials = PublishedTrials(source, split, self.seeds[split], self.processing.changes(training=False))
        if trials.size != self.tasks[split].size:
            raise UserError(
                f"{source.name} has published episodes of {trials.size}, but eval_task is {self.tasks[split].size}: "
                "set num_ways, num_shots and num_queries of eval_task to theirs."
            )
        self.num_episodes[split] = trials.count
        return trials

    def _generated(self, generator: TaskGenerator, split: str) -> GeneratedSampler:
        """The sampler of generated tasks, or an error for options that only apply to episodes of samples."""
        task, processing, files = self.tasks[split], self.processing, self.files
        given = {
            "task.shape": task.shape,
            "task.within_groups": task.within_groups,
            "processing.transform": processing.transform or None,
            "processing.rotations": processing.rotations,
            "files.export": files.export,
            "files.use": files.use,
        }
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UserError(
                f"{type(self.collection).__name__} generates its tasks, which have no samples or classes to choose "
                f"from: leave out {', '.join(wrong)}; the same seed gives the same tasks."
            )
        return GeneratedSampler(generator, split, self.seeds[split], task.size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage and checks that episodes can be drawn.

        Raises:
            UserError: episodes that cannot be drawn, or folders that cannot be read.
        """
        for split in STAGE_SPLITS[stage]:
            self.open(split)
        if stage == "predict":
            if self.predict.support is None or self.predict.query is None:
                raise UserError(
                    "predict needs two folders: --data.predict.support <label>/<image> with examples of every label, "
                    "and --data.predict.query with the images to label."
                )
            task = prediction_task(self.predict.support, self.predict.query, self.collection)
            support_x, query_x = (
                apply_transforms(self.processing.transform or (), x) for x in (task.support_x, task.query_x)
            )
            self._prediction = task._replace(support_x=support_x, query_x=query_x)

    # ---- serving

    def episode(self, split: str, index: int) -> Episode:
        """Episode number ``index`` of a split with ``T = 1``, on the CPU, without augmentation."""
        return episodes_of(self.open(split).fixed().batch(np.array([index]), torch.device("cpu")))[0]

    @cached_property
    def _sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: of a converted image if the collection can convert one, else of the first episode."""
        blank = Image.new("RGB", (64, 64), "white")
        blank.paste("black", (16, 16, 48, 48))
        try:
            sample = self.collection.convert(blank)
        except Exception:  # the collection converts other raw samples than images, such as recordings, or none
            first = self.episode("train", 0).support_x
            return () if isinstance(first, Tokens) else tuple(first.shape[2:])
        return tuple(apply_transforms(self.processing.transform or (), sample).shape)

    def info(self) -> DataInfo:
        """The description of the data."""
        generator = generator_of(self.collection)
        targets = generator.num_targets if generator is not None else None
        return self._described(
            batch=Episode,
            sample_shape=() if self.collection.of_texts else self._sample_shape,
            num_ways=None if targets else self.tasks["train"].num_ways,
            num_targets=targets,
            count_train_classes=lambda: class_count(self._splits.part("train"), self.rotations["train"]),
            episode_classes={
                split: one.source.class_names
                for split, one in self._samplers.items()
                if isinstance(one, EpisodeSampler)
            },
        )

    def _episodes(self, split: str) -> BatchLoader[MetaBatch]:
        sampler = self.open(split)  # first: a file has its own number of episodes
        count = self.num_episodes[split]
        if self.trainer and split != "train" and count < self.trainer.world_size:
            raise UserError(
                f"episodes.{split}={count} leaves some of {self.trainer.world_size} processes without any: raise it to "
                f"{self.trainer.world_size} or more."
            )
        return self._loader(sampler, count, self.tasks_per_batch, training=split == "train")

    def train_dataloader(self) -> BatchLoader[MetaBatch]:
        """Training episodes, new ones in every epoch.

        Raises:
            UserError: an epoch is too short for a meta-batch in every process.
        """
        loader = self._episodes("train")
        if len(loader) == 0:
            raise UserError(
                f"episodes.train={self.num_episodes['train']} is less than one meta-batch: episodes.per_batch="
                f"{self.tasks_per_batch} in each of {loader.place.world_size} processes; raise one or lower the other."
            )
        return loader

    def val_dataloader(self) -> BatchLoader[MetaBatch]:
        """The fixed validation episodes."""
        return self._episodes("val")

    def test_dataloader(self) -> BatchLoader[MetaBatch]:
        """The fixed test episodes."""
        return self._episodes("test")

    def predict_dataloader(self) -> BatchLoader[PredictionTask]:
        """The one task of ``lightning predict``."""
        assert self._prediction is not None  # made by setup
        return BatchLoader(OneItem(self._prediction), 1, 1)

    def protocol(self) -> dict[str, Any]:
        """What to report with every result on this data."""
        generated = generator_of(self.collection) is not None
        card = {
            "data": type(self.collection).__name__,
            "train_episode": self.tasks["train"].card(ways=not generated),
            "eval_episode": self.tasks["test"].card(ways=not generated),
            "tasks_per_batch": self.tasks_per_batch,
            "episodes": dict(self.num_episodes),
            "episode_seed": self.seed if len(set(self.seeds.values())) == 1 else self.seeds,
            **self.processing.changes(training=True).card(),
        }
        if not generated:
            within = self._within_groups("test")
            card |= {"rotations": self.rotations, "within_groups": within, "split": "as given"}
        opened = vars(self).get("_splits")  # a prediction needs no splits
        return self._with_split(card, None if generated or opened is None else opened.how)
