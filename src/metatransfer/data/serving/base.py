"""Base class of the data modules that serve one collection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule

from metatransfer.checks import check_not_negative, check_seed
from metatransfer.data.sampling.loader import Batch, BatchLoader, Place, Sampler
from metatransfer.data.serving.settings import Processing
from metatransfer.data.sources import SPLITS, Collection, Encoder, Source
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError

STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": (), None: SPLITS}
_open_path: list[Callable[[str], Collection]] = []  # filled by metatransfer.data: servers know no collection by name


def open_paths_by(function: Callable[[str], Collection]) -> None:
    """Registers the function that opens a path as a collection."""
    _open_path[:] = [function]


def collection_of(given: Collection | str, what: str = "source") -> Collection:
    """Returns a collection as it is, and opens a path as one."""
    if isinstance(given, str):
        return _open_path[0](given)
    if not isinstance(given, Collection):
        raise UserError(
            f"{what} must be a collection such as Glyphs() or ImageFolder(root=...), or the path of a folder or file, "
            f"but is of type {type(given).__name__}."
        )
    return given


def check_name(what: str, name: str) -> None:
    """Raises an error for a name that cannot be part of a metric's name."""
    if not name.replace("_", "a").replace("-", "a").isalnum():
        raise UserError(f"the name of the {what} '{name}' must consist of letters, digits, '_' and '-' only.")


class CollectionDataModule(LightningDataModule, ABC):
    """Serves one collection.

    Args:
        source: a collection, or the path of a folder or file.
        processing: processing of samples after they were read.
        seed: random seed.
        num_workers: number of worker processes for data that is not held in memory.

    Attributes:
        collection: the data.

    Raises:
        UserError: no collection, an invalid seed or a negative number.
    """

    def __init__(self, source: Collection | str, processing: Processing, seed: int, num_workers: int) -> None:
        super().__init__()
        check_seed(seed=seed)
        check_not_negative(num_workers=num_workers)
        self.collection = collection_of(source)
        self.processing, self.seed, self.num_workers = processing, seed, num_workers
        self._encoder: Encoder | None = None

    @abstractmethod
    def _training(self) -> Source:
        """The training samples before any encoding."""

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of texts or tables, ``None`` for other samples; built on first use."""
        needed = type(self.collection).encoder is not Collection.encoder  # otherwise the training part stays closed
        if self._encoder is None and needed:
            self._encoder = self.collection.encoder(self._training())
        return self._encoder

    def _described(self, **values: Any) -> DataInfo:  # noqa: ANN401
        """The description of the data, with what encoder and collection say."""
        encoder = self.encoder
        return DataInfo(
            **values,
            vocabulary_size=(encoder.size or None) if encoder is not None else None,
            shared_vocabulary=encoder is None or not encoder.size or encoder.shared,
            skipped=dict(self.collection.skipped),
        )

    def _with_split(self, card: dict[str, Any], how: str | None) -> dict[str, Any]:
        """A protocol card with what the collection reports, and with a division that a server made."""
        return card | self.collection.protocol() | ({} if how is None else {"split": how})

    def prepare_data(self) -> None:
        """Lets the collection download its data."""
        self.collection.prepare()

    def state_dict(self) -> dict[str, Any]:
        """The encoder, which belongs to the weights."""
        return {} if self.encoder is None else {"encoder": self.encoder.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the encoder of the checkpoint, even if the training samples have changed."""
        if state_dict.get("encoder") is not None:
            self._encoder = self.collection.encoder_from(state_dict["encoder"])

    def _loader(
        self, sampler: Sampler[Batch], count: int, batch_size: int, *, training: bool = False
    ) -> BatchLoader[Batch]:
        place = Place.of(self.trainer, training=training)
        workers = self.num_workers
        return BatchLoader(sampler, count, batch_size, drop_last=training, place=place, num_workers=workers)
