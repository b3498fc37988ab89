"""Training on one source of episodes, testing on others."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from metatransfer.batches import Episode
from metatransfer.checks import did_you_mean
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.loaders import EpisodeLoader, TaskLoader
from metatransfer.errors import UserError


class CrossDomainEpisodes(LightningDataModule):
    """Trains on the episodes of one data module and tests on those of others (Chen et al. 2019, 1904.04232).

    Validation, and with it the choice of the checkpoint, is on classes of the training source unless another data
    module is given for it: what was chosen on a test source says little about new ones. The test gives
    ``test/<name>/accuracy`` for each source and ``test/accuracy`` over all their episodes.

    Args:
        train: its ``train`` split is trained on, and its ``val`` split validates where nothing else does.
        test: data modules by name, whose ``test`` splits are tested on; letters, digits, ``_`` and ``-`` make a name.
        val: data module whose ``val`` split validates.

    Attributes:
        test_sources: names of the test sources, in order.

    Raises:
        UserError: no test source, or a name with other characters.
    """

    def __init__(
        self,
        train: EpisodicDataModule,
        test: dict[str, EpisodicDataModule],
        val: EpisodicDataModule | None = None,
    ) -> None:
        super().__init__()
        if not test:
            raise UserError("test names no source: give at least one, <name>: <data module>.")
        for name in test:
            if not name.replace("_", "a").replace("-", "a").isalnum():
                raise UserError(f"the test source '{name}' must be named by letters, digits, '_' and '-' alone.")
        self.train_data, self.val_data, self.test_data = train, val or train, dict(test)
        self.test_sources = tuple(test)
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def skipped(self) -> dict[str, int]:
        """Samples left out, by source and split."""
        parts = {"train": self.train_data, "val": self.val_data, **self.test_data}
        return {
            f"{name} {split}" if name in self.test_data else split: count
            for name, data in parts.items()
            for split, count in getattr(data, "skipped", {}).items()
            if (split == name) or (name in self.test_data and split == "test")
        }

    def prepare_data(self) -> None:
        """Lets every source download what it may."""
        for data in {id(one): one for one in (self.train_data, self.val_data, *self.test_data.values())}.values():
            data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens what a stage needs, and checks that all samples are of one shape.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None`` for all splits.

        Raises:
            UserError: as the data modules, or samples of different shapes.
        """
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
        data.open(split)
        self._shapes[name] = tuple(data.episode(split, 0).query_x.shape[2:])
        first = next(iter(self._shapes))
        if self._shapes[first] != self._shapes[name]:
            raise UserError(
                f"samples must have one shape in all sources, but those of {first} are {self._shapes[first]} and those "
                f"of {name} are {self._shapes[name]}: set image_size and channels alike."
            )

    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the training source."""
        return self.train_data.sample_shape()

    def episode(self, split: str, index: int, source: str | None = None) -> Episode:
        """One episode, with ``T = 1``.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``; :meth:`setup` must have opened it.
            index: its number.
            source: name of the test source; the first without it.

        Returns:
            The episode, on the CPU, without augmentation.

        Raises:
            UserError: no such test source.
        """
        if split != "test":
            return (self.train_data if split == "train" else self.val_data).episode(split, index)
        name = source or self.test_sources[0]
        if name not in self.test_data:
            raise UserError(
                f"there is no test source '{name}', only {', '.join(self.test_sources)}"
                f"{did_you_mean(name, self.test_sources)}"
            )
        return self.test_data[name].episode("test", index)

    def train_dataloader(self) -> EpisodeLoader:
        """Training episodes of the one source."""
        return self.train_data.train_dataloader()

    def val_dataloader(self) -> EpisodeLoader:
        """The fixed validation episodes."""
        return self.val_data.val_dataloader()

    def test_dataloader(self) -> list[EpisodeLoader]:
        """The fixed test episodes, a loader for each source."""
        return [data.test_dataloader() for data in self.test_data.values()]

    def predict_dataloader(self) -> TaskLoader:
        """The one task of ``lightning predict``."""
        return self.train_data.predict_dataloader()

    def info(self) -> Any:  # noqa: ANN401
        """TEMPORARY."""
        from dataclasses import replace

        return replace(self.train_data.info(), test_names=self.test_sources, skipped=self.skipped)

    def protocol(self) -> dict[str, Any]:
        """What must stand beside every number: the protocols of all sources."""
        return {
            "data": type(self).__name__,
            "train": self.train_data.protocol(),
            "val": self.val_data.protocol(),
            "test": {name: data.protocol() for name, data in self.test_data.items()},
        }
