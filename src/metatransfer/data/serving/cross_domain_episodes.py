"""Training on one source of episodes, testing on others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from metatransfer.batches import Episode, MetaBatch, PredictionTask
from metatransfer.checks import did_you_mean
from metatransfer.data.sampling.loader import BatchLoader
from metatransfer.data.serving.base import check_name
from metatransfer.data.serving.episodic import EpisodicDataModule
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError


class CrossDomainEpisodes(LightningDataModule):
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
        self,
        train: EpisodicDataModule,
        test: dict[str, EpisodicDataModule],
        val: EpisodicDataModule | None = None,
    ) -> None:
        super().__init__()
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

    @property
    def _skipped(self) -> dict[str, int]:
        parts = {"train": self.train_data, "val": self.val_data, **self.test_data}
        return {
            f"{name} {split}" if name in self.test_data else split: count
            for name, data in parts.items()
            for split, count in data.collection.skipped.items()
            if split in (name, "all") or (name in self.test_data and split == "test")
        }

    def info(self) -> DataInfo:
        """The description of the training data, with the names of the test sources."""
        return replace(self.train_data.info(), test_names=self.test_names, skipped=self._skipped)

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

    def state_dict(self) -> dict[str, Any]:
        """The state of the training data."""
        return self.train_data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the training data."""
        self.train_data.load_state_dict(state_dict)

    def episode(self, split: str, index: int, name: str | None = None) -> Episode:
        """One episode with ``T = 1``, on the CPU, without augmentation.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            index: number of the episode.
            name: name of the test source; defaults to the first.

        Returns:
            The episode.

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

    def predict_dataloader(self) -> BatchLoader[PredictionTask]:
        """The one task of ``lightning predict``."""
        return self.train_data.predict_dataloader()

    def protocol(self) -> dict[str, Any]:
        """The protocols of all sources."""
        return {
            "data": type(self).__name__,
            "train": self.train_data.protocol(),
            "val": self.val_data.protocol(),
            "test": {name: data.protocol() for name, data in self.test_data.items()},
        }
