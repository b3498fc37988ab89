"""What data modules over one collection share: opening it, its encoder, the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule

from metatransfer.checks import check_not_negative, check_seed
from metatransfer.data.sampling.loader import BatchLoader, Place
from metatransfer.data.sampling.sampler import Batch, Sampler
from metatransfer.data.serving.settings import Processing
from metatransfer.data.sources import Collection, Encoder, Source
from metatransfer.errors import UserError

_open_path: list[Callable[[str], Collection]] = []  # filled by metatransfer.data: servers know no collection by name


def open_paths_by(function: Callable[[str], Collection]) -> None:
    """Says what makes a collection of a path."""
    _open_path[:] = [function]


def collection_of(given: Collection | str, what: str = "source") -> Collection:
    """A collection, where a path may stand for one.

    Raises:
        UserError: something else, or a path that no collection reads.
    """
    if isinstance(given, str):
        return _open_path[0](given)
    if not isinstance(given, Collection):
        raise UserError(
            f"{what} must be a collection such as Glyphs() or ImageFolder(root=...), or the path of a folder or file, "
            f"but is of type {type(given).__name__}."
        )
    return given


class CollectionDataModule(LightningDataModule, ABC):
    """Serves one collection.

    Args:
        source: a collection, or the path of a folder or file.
        processing: what happens to samples after they were read.
        seed: of everything that is random.
        num_workers: processes that read data which is not held in memory.

    Attributes:
        collection: the data.

    Raises:
        UserError: no collection, an impossible seed or a negative number.
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
        """What texts or tables are read through, ``None`` for other samples; made when first asked for."""
        needed = type(self.collection).encoder is not Collection.encoder  # else the training part can stay closed
        if self._encoder is None and needed:
            self._encoder = self.collection.encoder(self._training())
        return self._encoder

    def _encoded(self, source: Source) -> Source:
        encoder = self.encoder
        return source if encoder is None else source.encoded(encoder)

    def prepare_data(self) -> None:
        """Lets the collection download what it may."""
        self.collection.prepare()

    def state_dict(self) -> dict[str, Any]:
        """The encoder, without which the weights mean nothing."""
        return {} if self.encoder is None else {"encoder": self.encoder.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the encoder of the checkpoint, whatever the training samples are now."""
        if state_dict.get("encoder") is not None:
            self._encoder = self.collection.encoder_from(state_dict["encoder"])

    def _loader(
        self, sampler: Sampler[Batch], count: int, batch_size: int, *, training: bool = False
    ) -> BatchLoader[Batch]:
        place = Place.of(self.trainer, training=training)
        workers = self.num_workers
        return BatchLoader(sampler, count, batch_size, drop_last=training, place=place, num_workers=workers)
