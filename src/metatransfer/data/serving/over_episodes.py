"""Data modules made of episodic ones: tests on several sources, and training on labelled batches."""

from dataclasses import replace
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from metatransfer.batches import Episode, LabelledBatch, MetaBatch, PredictionTask
from metatransfer.checks import check_count, did_you_mean
from metatransfer.data.sampling.labelled import LabelledSampler
from metatransfer.data.sampling.loader import BatchLoader
from metatransfer.data.serving.base import check_name, training_batches
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError


class _OverEpisodes(LightningDataModule):
    """Takes its state and its predictions from the data module ``main``."""

    def __init__(self, main: "EpisodicDataModule | CrossDomainEpisodes") -> None:
        super().__init__()
        self._main = main

    def state_dict(self) -> dict[str, Any]:
        """The state of the training data."""
        return self._main.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the training data."""
        self._main.load_state_dict(state_dict)

    def predict_dataloader(self) -> BatchLoader[PredictionTask]:
        """The one task of ``lightning predict``."""
        return self._main.predict_dataloader()


class CrossDomainEpisodes(_OverEpisodes):
    """Trains on the episodes of one data module and tests on those of others (Chen et al. 2019, 1904.04232).

    Validation, which selects the checkpoint, uses classes of the training source unless ``val`` is given: a model
    selected on a test source says little about new ones. The test reports ``test/<name>/accuracy`` for each source and
    ``test/accuracy`` over all their episodes.

    Args:
        train: data module of the training episodes.
        test: data modules of the test episodes, by name; names consist of letters, digits, ``_`` and ``-``.
        val: data module of the validation episodes; defaults to ``train``.

    Raises:
        UserError: no test source, or an invalid name.
    """

    def __init__(
        self, train: EpisodicDataModule, test: dict[str, EpisodicDataModule], val: EpisodicDataModule | None = None
    ) -> None:
        super().__init__(train)
        if not test:
            raise UserError("test has no source: give at least one, <name>: <data module>.")
        for name in test:
            check_name("test source", name)
        self.train_data, self.val_data, self.test_data = train, val or train, dict(test)
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def test_names(self) -> tuple[str, ...]:
        """Names of the test sources, in order."""
        return tuple(self.test_data)

    def info(self) -> DataInfo:
        """The description of the training data, with the names of the test sources."""
        parts = [("train", "train", self.train_data), ("all", "all", self.train_data), ("val", "val", self.val_data)]
        for name, data in self.test_data.items():
            parts += [(f"{name} {split}", split, data) for split in ("test", "all")]
        counts = {name: data.collection.skipped.get(split) for name, split, data in parts}
        skipped = {name: count for name, count in counts.items() if count is not None}
        return replace(self.train_data.info(), test_names=self.test_names, skipped=skipped)

    def prepare_data(self) -> None:
        """Lets every source download its data."""
        for data in {id(one): one for one in (self.train_data, self.val_data, *self.test_data.values())}.values():
            data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage, and checks that all samples have the same shape."""
        if stage in ("fit", None):
            self._open("train", self.train_data, "train")
        if stage in ("fit", "validate", None):
            self._open("val", self.val_data, "val")
        if stage in ("test", None):
            for name, data in self.test_data.items():
                self._open(name, data, "test")
        if stage == "predict":
            self.train_data.setup("predict")

    def _open(self, name: str, data: EpisodicDataModule, split: str) -> None:
        data.trainer = self.trainer
        if data is not self.train_data and (self.train_data.collection.of_texts or data.collection.of_texts):
            raise UserError(
                f"{name} and the training data are texts with different vocabularies: serve texts with one "
                "EpisodicDataModule."
            )
        query_x = data.episode(split, 0).query_x
        self._shapes[name] = tuple(query_x.shape[2:]) if isinstance(query_x, Tensor) else ()
        first = next(iter(self._shapes))
        if self._shapes[first] != self._shapes[name]:
            raise UserError(
                f"samples must have the same shape in all sources, but those of {first} are {self._shapes[first]} and "
                f"those of {name} are {self._shapes[name]}: set the same image_size and channels."
            )

    def episode(self, split: str, index: int, name: str | None = None) -> Episode:
        """One episode with ``T = 1``, on the CPU, without augmentation; ``name`` selects a test source, or the first.

        Raises:
            UserError: no such test source.
        """
        if split != "test":
            return (self.train_data if split == "train" else self.val_data).episode(split, index)
        name = name or self.test_names[0]
        if name not in self.test_data:
            known = ", ".join(self.test_names)
            raise UserError(f"there is no test source '{name}', only {known}{did_you_mean(name, self.test_names)}")
        return self.test_data[name].episode("test", index)

    def train_dataloader(self) -> BatchLoader[MetaBatch]:
        """Training episodes."""
        return self.train_data.train_dataloader()

    def val_dataloader(self) -> BatchLoader[MetaBatch]:
        """The fixed validation episodes."""
        return self.val_data.val_dataloader()

    def test_dataloader(self) -> list[BatchLoader[MetaBatch]]:
        """The fixed test episodes, one loader per source."""
        return [data.test_dataloader() for data in self.test_data.values()]

    def protocol(self) -> dict[str, Any]:
        """The protocols of all sources."""
        return {
            "data": type(self).__name__,
            "train": self.train_data.protocol(),
            "val": self.val_data.protocol(),
            "test": {name: data.protocol() for name, data in self.test_data.items()},
        }


class ClassBatches(_OverEpisodes):
    """Serves the training split of an episodic data module as shuffled labelled batches of all its classes.

    For methods that are trained on samples and tested on episodes. Validation, test and prediction are those of the
    wrapped data module. An epoch is one pass over the samples; its order is a pure function of (seed, epoch), is shared
    by the processes without overlap, and continues with the next batch when a run resumes. Augmentation and transforms
    are those of the data module; with its ``rotations`` each class becomes four, rotated by multiples of 90 degrees.

    Args:
        episodes: the wrapped data module.
        batch_size: samples per batch, in each process.

    Raises:
        UserError: ``episodes`` is something else or generates its tasks, or a number is below 1.
    """

    def __init__(self, episodes: EpisodicDataModule | CrossDomainEpisodes, batch_size: int = 64) -> None:
        super().__init__(episodes)
        if not isinstance(episodes, EpisodicDataModule | CrossDomainEpisodes):
            raise UserError(
                "episodes must be a data module of episodes, such as EpisodicDataModule(source=Glyphs()), but is of "
                f"type {type(episodes).__name__}."
            )
        check_count(batch_size=batch_size)
        self.episodes, self.batch_size = episodes, batch_size
        self._train = episodes.train_data if isinstance(episodes, CrossDomainEpisodes) else episodes

    @cached_property
    def _sampler(self) -> LabelledSampler:
        changes = self._train.processing.changes(training=True)
        return LabelledSampler(self._train.training_source(), self._train.seeds["train"], changes, shuffled=True)

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

    def episode(self, split: str, index: int, name: str | None = None) -> Episode:
        """One episode of the wrapped data module with ``T = 1``; ``name`` selects one of several test sources."""
        if isinstance(self.episodes, CrossDomainEpisodes):
            return self.episodes.episode(split, index, name)
        return self.episodes.episode(split, index)

    def train_dataloader(self) -> BatchLoader[LabelledBatch]:
        """Labelled batches in a new order every epoch; a last one that is not full is dropped, if there are others.

        Raises:
            UserError: fewer samples than processes.
        """
        return training_batches(self._sampler, self.batch_size, self.trainer, self._train.num_workers)

    def val_dataloader(self) -> BatchLoader[MetaBatch]:
        """The fixed validation episodes."""
        return self.episodes.val_dataloader()

    def test_dataloader(self) -> BatchLoader[MetaBatch] | list[BatchLoader[MetaBatch]]:
        """The fixed test episodes."""
        return self.episodes.test_dataloader()

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
