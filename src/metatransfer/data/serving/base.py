"""Base class of the data modules that serve one collection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from metatransfer.batches import LabelledBatch
from metatransfer.checks import check_count, check_seed
from metatransfer.data.sampling.labelled import LabelledSampler
from metatransfer.data.sampling.loader import Batch, BatchLoader, Place, Sampler
from metatransfer.data.serving.settings import Processing
from metatransfer.data.sources import SPLITS, Collection, Encoder, Source
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError

_OF_COLLECTIONS = ("source", "parts", "unlabelled", "unlabelled_parts", "convert", "convert_image")
STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": (), None: SPLITS}
_open_path: list[Callable[[str], Collection]] = []  # filled by metatransfer.data: servers know no collection by name


def open_paths_by(function: Callable[[str], Collection]) -> None:
    """Registers the function that opens a path as a collection."""
    _open_path[:] = [function]


def check_name(what: str, name: str) -> None:
    """Raises an error for a name that cannot be part of a metric's name."""
    if not name.replace("_", "a").replace("-", "a").isalnum():
        raise UserError(f"the name of the {what} '{name}' must consist of letters, digits, '_' and '-' only.")


def training_batches(
    sampler: LabelledSampler, batch_size: int, trainer: Trainer | None, num_workers: int
) -> BatchLoader[LabelledBatch]:
    """Full batches of an epoch, or one smaller batch if there are not enough samples."""
    place = Place.of(trainer, training=True)
    size = min(batch_size, len(sampler) // place.world_size)
    if not size:
        raise UserError(
            f"there are {len(sampler)} training samples for {place.world_size} processes: use fewer processes."
        )
    return BatchLoader(sampler, len(sampler), size, drop_last=True, place=place, num_workers=num_workers)


class CollectionDataModule(LightningDataModule, ABC):
    """Serves one ``collection``, which is given as such or as the path of a folder or file."""

    def __init__(self, source: Collection | str, processing: Processing, seed: int, num_workers: int) -> None:
        super().__init__()
        check_seed(seed=seed)
        check_count(0, 1000, num_workers=num_workers)
        self.collection = _open_path[0](source) if isinstance(source, str) else source
        if not isinstance(self.collection, Collection):
            raise UserError(
                "source must be a collection such as Glyphs() or ImageFolder(root=...), or the path of a folder or "
                f"file, but is of type {type(source).__name__}."
            )
        self.processing, self.seed, self.num_workers = processing, seed, num_workers
        self._encoder: Encoder | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Raises an error for methods that say what the samples are: they are never called here."""
        super().__init_subclass__(**kwargs)
        for name in _OF_COLLECTIONS:
            if callable(vars(cls).get(name)):
                raise UserError(
                    f"{cls.__name__} defines {name}(), which a data module never calls: define a Collection whose "
                    f"parts() returns the sources, and serve it, {cls.__bases__[0].__name__}(source=...)."
                )

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
        """Restores the encoder of the checkpoint, even if the training samples have changed.

        Raises:
            UserError: it is damaged, or belongs to other data.
        """
        try:
            if state_dict.get("encoder") is not None:
                self._encoder = self.collection.encoder_from(state_dict["encoder"])
        except UserError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"the checkpoint is damaged, the state of {type(self).__name__} cannot be used ({error}): give a file "
                "that fit wrote."
            ) from error

    def _loader(
        self, sampler: Sampler[Batch], count: int, batch_size: int, *, training: bool = False
    ) -> BatchLoader[Batch]:
        place = Place.of(self.trainer, training=training)
        workers = self.num_workers
        return BatchLoader(sampler, count, batch_size, drop_last=training, place=place, num_workers=workers)
