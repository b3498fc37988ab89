"""The base of all data modules that serve episodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn

from metatransfer.batches import Episode, PredictionTask, episodes_of
from metatransfer.checks import check_choice, check_folder, check_positive, check_seed
from metatransfer.data.augment import Augmentation, apply_transforms, check_deterministic
from metatransfer.data.episode_files import SavedEpisodes, save_episodes
from metatransfer.data.folders import prediction_task
from metatransfer.data.loaders import EpisodeLoader, TaskLoader, training_position
from metatransfer.data.samplers import SPLITS, EpisodeSampler, TaskSampler
from metatransfer.data.shaped_sampler import ShapedSampler
from metatransfer.data.shapes import EpisodeSize, FixedShape, TaskShape
from metatransfer.data.sources import RotatedClasses, Source
from metatransfer.errors import UserError

Rotation = Literal["none", "classes", "per_class"]
ROTATIONS: tuple[str, ...] = get_args(Rotation)
_STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": (), None: SPLITS}


class EpisodicDataModule(LightningDataModule):
    """Serves n-way k-shot episodes of any labelled data.

    A subclass says where the samples of a split come from (:meth:`source`) and, for ``lightning predict``, how it looks
    at an image file (:meth:`convert_image`); it may set the attributes below in its constructor. Episodes are a pure
    function of (seed, split, index): the same for any number of workers or processes and after a resume. Every training
    epoch has new ones; those of validation and test are fixed.

    Attributes:
        default_rotations: what ``rotations`` is where it is left out.
        default_group_by: what ``group_by`` is where it is left out.
        num_targets: size of the targets where tasks are regressions, ``None`` where they are classifications.

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
        augmentation: random changes of the training samples, e.g. ``RandomAffine`` or ``TorchvisionTransforms``.
        transform: fixed changes of all samples, of ``torchvision.transforms.v2``, in batch on the device; the last
            thing that happens to them (``Normalize``).
        task_shape: ways and shots that change from episode to episode, e.g. ``MetaDatasetShape``.
        eval_task_shape: that of validation and test; as in training where left out.
        rotations: ``"none"``, ``"classes"`` (each class four times, turned by quarters, as classes of their own) or
            ``"per_class"`` (each class turned at random in each episode), for all splits or by split; where left out,
            as the data's protocol has it.
        group_by: draw all classes of an episode from one group of the source (alphabet, superclass); where left
            out, as the data's protocol has it.
        export_episodes: folder into which the episodes of each evaluation are written, as ``val.npz`` or ``test.npz``.
        episode_files: folder of such files, or the file of each split, to be served instead of drawing episodes; it
            is checked that they were made of the very same samples, and ``val_episodes`` and ``test_episodes`` follow.
        num_workers: processes that read data which is not held in memory.
        support: folder ``<label>/<image>`` of labelled examples, for ``lightning predict`` only.
        query: folder of images to label, for ``lightning predict`` only.

    Raises:
        UserError: a number below 1, a seed outside 0 .. 2**32 - 1, a random ``transform``, an unknown rotation or
            split, or the base itself instead of a subclass.
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
        transform: list[nn.Module] | None = None,
        task_shape: TaskShape | None = None,
        eval_task_shape: TaskShape | None = None,
        rotations: dict[str, Rotation] | Rotation | None = None,
        group_by: bool | None = None,
        export_episodes: str | None = None,
        episode_files: dict[str, str] | str | None = None,
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
        check_seed(seed=seed)
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
        check_deterministic(transform or ())
        self.transform = list(transform or ())
        self.task_shapes = {"train": task_shape or FixedShape(), "val": eval_task_shape or task_shape or FixedShape()}
        self.task_shapes["test"] = self.task_shapes["val"]
        self.export_folder = export_episodes
        for split in episode_files if isinstance(episode_files, dict) else ():
            check_choice("episode_files' split", split, ("val", "test"))
        self.episode_files = episode_files
        self.num_workers = num_workers
        self.support_folder, self.query_folder = support, query
        self.default_rotations: dict[str, Rotation] = {}
        self.default_group_by = False
        for split, rotation in (rotations if isinstance(rotations, dict) else {"train": rotations}).items():
            check_choice("rotations' split", split, SPLITS)
            check_choice("rotations", rotation or "none", ROTATIONS)
        self._rotations = (
            rotations if isinstance(rotations, dict) or rotations is None else dict.fromkeys(SPLITS, rotations)
        )
        self._group_by = group_by
        self.samplers: dict[str, TaskSampler] = {}
        self.prediction_task: PredictionTask | None = None

    @property
    def rotations(self) -> dict[str, Rotation]:
        """How each split's classes are rotated."""
        chosen = self.default_rotations if self._rotations is None else self._rotations
        return {split: chosen.get(split, "none") for split in SPLITS}

    @property
    def group_by(self) -> bool:
        """Whether all classes of an episode come from one group."""
        return self.default_group_by if self._group_by is None else self._group_by

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
        source, shape, rotation = self.source(split), self.shape(split), self.rotations[split]
        if not isinstance(source, Source):
            raise UserError(
                f"{type(self).__name__}.source must return a Source, such as TensorSource(data, labels, class_names, "
                f"name), but returned {type(source).__name__}."
            )
        if rotation == "classes":
            source = RotatedClasses(source)
        size, kind = EpisodeSize(**shape), self.task_shapes[split]
        where, prefix = f"{type(self).__name__} ({split} split)", "" if split == "train" else "eval_"
        kind.check(source.sizes, source.class_names, size, where, prefix)
        make: Callable[..., EpisodeSampler] = (
            partial(EpisodeSampler, **size._asdict())
            if type(kind) is FixedShape
            else partial(ShapedSampler, shape=kind, size=size)
        )
        return make(
            source,
            split,
            self.seed,
            within_groups=self.group_by,
            turn_classes=rotation == "per_class",
            transform=partial(apply_transforms, self.transform) if self.transform else None,
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

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, for networks that are to be built for it.

        Returns:
            For example ``(3, 84, 84)``: what :meth:`convert_image` and ``transform`` make of an image; where the data
            is not made of images, the first training episode is looked at.
        """
        blank = Image.new("RGB", (64, 64), "white")
        blank.paste("black", (16, 16, 48, 48))
        try:
            sample = self.convert_image(blank)
        except UserError:
            first = episodes_of(self.open("train").episodes(np.array([0]), torch.device("cpu")))[0]
            return tuple(first.support_x.shape[2:])
        return tuple(apply_transforms(self.transform, sample).shape)

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
            self.open(split)
        if stage == "predict":
            if self.support_folder is None or self.query_folder is None:
                raise UserError(
                    "predict needs two folders: --data.support <label>/<image> with examples of every label, and "
                    "--data.query with the images to label."
                )
            task = prediction_task(self.support_folder, self.query_folder, self.convert_image)
            if self.transform:
                changed = (apply_transforms(self.transform, x) for x in (task.support_x, task.query_x))
                task = task._replace(support_x=next(changed), query_x=next(changed))
            self.prediction_task = task

    def open(self, split: str) -> TaskSampler:
        """Opens a split, once, and checks that its episodes are possible.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            What draws its episodes.
        """
        if split not in self.samplers:
            self.samplers[split] = self._opened(split)
        return self.samplers[split]

    def _opened(self, split: str) -> TaskSampler:
        """The sampler of a split, or the file of episodes in its place; writes the file that is wished for.

        Raises:
            UserError: files of episodes for generated tasks, or a file that does not fit.
        """
        sampler = self.sampler(split)
        path = self._episode_file(split)
        exports = self.export_folder is not None and split != "train"
        if not isinstance(sampler, EpisodeSampler):
            self._check_generated(split)
            return sampler
        if path is not None:
            fixed = type(self.task_shapes[split]) is FixedShape
            sampler = saved = SavedEpisodes(sampler, path, EpisodeSize(**self.shape(split)) if fixed else None)
            self.num_episodes[split] = saved.count
        if exports and (self.trainer is None or self.trainer.is_global_zero):
            save_episodes(Path(str(self.export_folder), f"{split}.npz"), sampler, self.num_episodes[split])
        return sampler

    def _check_generated(self, split: str) -> None:
        """Refuses what only episodes of samples have, where tasks are generated.

        Raises:
            UserError: with the arguments.
        """
        asked = {
            "task_shape": type(self.task_shapes[split]) is not FixedShape,
            "transform": bool(self.transform),
            "rotations": self._rotations is not None,
            "group_by": self._group_by is not None,
            "export_episodes": self.export_folder is not None,
            "episode_files": self.episode_files is not None,
        }
        if wrong := [name for name, given in asked.items() if given]:
            raise UserError(
                f"{type(self).__name__} generates its tasks, which have no samples or classes to choose from: leave "
                f"out {', '.join(wrong)}; the same seed gives the same tasks."
            )

    def _episode_file(self, split: str) -> Path | None:
        if isinstance(self.episode_files, dict):
            return Path(self.episode_files[split]) if split in self.episode_files else None
        if self.episode_files is None or split == "train":
            return None
        folder = check_folder(self.episode_files, "episode_files")
        if not any((folder / f"{one}.npz").exists() for one in ("val", "test")):
            raise UserError(f"episode_files: '{folder}' holds neither val.npz nor test.npz; name the folder of both.")
        path = folder / f"{split}.npz"
        return path if path.exists() else None

    def episode(self, split: str, index: int) -> Episode:
        """One episode as the methods see it in evaluation, with ``T = 1``.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``; :meth:`setup` must have opened it.
            index: its number.

        Returns:
            The episode, on the CPU, without augmentation.
        """
        return episodes_of(self.samplers[split].episodes(np.array([index]), torch.device("cpu")))[0]

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

    def info(self) -> Any:  # noqa: ANN401
        """TEMPORARY."""
        from metatransfer.data_info import DataInfo

        return DataInfo(
            Episode, self._shape_of_samples(), self.num_ways, getattr(self, "num_targets", None),
            skipped=dict(getattr(self, "skipped", {})),
        )  # fmt: skip

    def _shape_of_samples(self) -> tuple[int, ...]:
        """TEMPORARY."""
        opened = next(iter(self.samplers), None)
        return self.sample_shape() if opened is None else tuple(self.episode(opened, 0).support_x.shape[2:])  # type: ignore[union-attr]

    def protocol(self) -> dict[str, Any]:
        """What must stand beside every number measured on this data."""

        def episode(split: str) -> dict[str, Any]:
            kind = self.task_shapes[split]
            return self.shape(split) | ({} if type(kind) is FixedShape else {"shape": repr(kind)})

        return {
            "data": type(self).__name__,
            "train_episode": episode("train"),
            "eval_episode": episode("test"),
            "tasks_per_batch": self.tasks_per_batch,
            "episodes": dict(self.num_episodes),
            "episode_seed": self.seed,
            "augmentation": repr(self.augmentation) if self.augmentation is not None else "none",
            "rotations": self.rotations,
            "within_groups": self.group_by,
            "transform": [str(one) for one in self.transform] or "none",
        }

    def _loader(self, split: str) -> EpisodeLoader:
        sampler = self.open(split)  # now, where it is asked for without a Trainer
        trainer = self.trainer
        if trainer and split != "train" and self.num_episodes[split] < trainer.world_size:
            raise UserError(
                f"{split}_episodes={self.num_episodes[split]} leaves some of {trainer.world_size} processes without "
                "any: raise it to one for each at least."
            )
        return EpisodeLoader(
            sampler,
            episodes=self.num_episodes[split],
            tasks_per_batch=self.tasks_per_batch,
            drop_last=split == "train",
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            position=partial(training_position, trainer) if split == "train" else lambda: (0, 0),
            device=lambda: trainer.strategy.root_device if trainer else torch.device("cpu"),
            augmentation=self.augmentation if split == "train" else None,
            num_workers=self.num_workers,
        )
