"""What models and callbacks can ask data modules for: a description of the data, and its samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from metatransfer.batches import UnlabelledBatch


@dataclass(frozen=True)
class DataInfo:
    """A description of the data that a data module serves.

    Attributes:
        batch: type of the training batches: ``Episode``, ``LabelledBatch`` or ``DomainBatch``.
        sample_shape: shape of one sample after all transforms; ``()`` for texts.
        num_ways: number of classes of a training episode, ``None`` if training does not use episodes.
        num_targets: size of a regression target, ``None`` for classification.
        class_names: names of the classes of training batches, in the order of their labels; empty for episodes.
        episode_classes: names of the classes that episodes are drawn from, by split; only for splits in use.
        count_train_classes: computes :attr:`train_classes`, which may open files.
        class_counts: number of training samples of each class, in the same order.
        vocabulary_size: number of different tokens, ``None`` if samples are not texts.
        test_names: names of the test sets in the order of the test loaders, if there are several.
        target_names: names of the target domains in order; empty without domains.
        oracle: permitted use of target labels: ``"none"``, ``"report"`` or ``"select"``.
        skipped: number of skipped samples by part of the data.
        shared_vocabulary: whether token numbers have the same meaning under another seed (``False`` for vocabularies
            that are built from the training texts).
        sparse: whether samples are rows of a sparse matrix, which batches hold as ordinary tensors.
    """

    batch: type
    sample_shape: tuple[int, ...] = ()
    num_ways: int | None = None
    num_targets: int | None = None
    class_names: tuple[str, ...] = ()
    episode_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    count_train_classes: Callable[[], int | None] | None = field(default=None, repr=False, compare=False)
    class_counts: tuple[int, ...] = ()
    vocabulary_size: int | None = None
    test_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    oracle: str = "none"
    skipped: Mapping[str, int] = field(default_factory=dict)
    shared_vocabulary: bool = True
    sparse: bool = False

    @property
    def num_outputs(self) -> int | None:
        """Size of the output layer for training episodes: the size of a target, or the number of ways."""
        return self.num_targets or self.num_ways

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the training batches, ``None`` for episodes."""
        return len(self.class_names) or None

    @property
    def train_classes(self) -> int | None:
        """Number of classes that training episodes are drawn from, ``None`` for regression and other batches."""
        return self.count_train_classes() if self.count_train_classes is not None else None


@runtime_checkable
class ServesData(Protocol):
    """A data module of this package."""

    def info(self) -> DataInfo:
        """The description of the data."""

    def protocol(self) -> dict[str, Any]:
        """The evaluation protocol, which is reported with every result on this data."""


@runtime_checkable
class ServesSamples(ServesData, Protocol):
    """A data module that serves labelled samples of fixed classes."""

    def train_samples(self) -> Iterable[Any]:
        """The training samples once, in order and without augmentation, in batches with ``x`` and ``y``."""

    def samples(self, split: str) -> Iterable[Any]:
        """The samples of a split once, without augmentation, in batches with ``x`` and ``number``, in any order."""

    def labels(self, split: str) -> Tensor:
        """The labels of a split ``(N,)`` int64, in the order of the samples' numbers."""

    def content_key(self, split: str) -> str:
        """A hash of the samples of a split after all transforms."""

    def show(self, split: str, number: int) -> str | Tensor:
        """A sample to display: a sentence, or an image ``(C, H, W)`` in [0, 1]."""

    def reseeded(self, seed: int) -> Self:
        """The same data with another seed of divisions, labels and order."""


@runtime_checkable
class ReadsSamples(ServesSamples, Protocol):
    """A data module that reads new samples as it reads those of the training."""

    def predict_dataloader(self, samples: str | Sequence[str] | None = None) -> Iterable[UnlabelledBatch]:
        """Batches of the samples of a folder or file, of image files, or of texts."""


@runtime_checkable
class ServesDomains(ServesData, Protocol):
    """A data module that serves labelled source domains and unlabelled target domains."""

    def source_samples(self) -> Iterable[Any]:
        """The training samples of the sources once, in order and without augmentation."""

    def target_samples(self, *, shuffled: bool = False) -> Iterable[Any]:
        """The training samples of the targets once, without labels."""

    def oracle_labels(self, split: str) -> Tensor | None:
        """Labels of the targets for metrics named ``oracle/...``; ``None`` if they may not be used."""

    def oracle_twin(self) -> "ServesDomains":
        """The same targets, and as sources their labelled training samples."""

    def show(self, split: str, number: int) -> str | Tensor:
        """A target sample to display."""

    def reseeded(self, seed: int) -> Self:
        """The same domains with another seed of divisions, labels and order."""


def datamodule_of(run: LightningModule | Trainer | None) -> Any:  # noqa: ANN401
    """The data module of a run, of any package; ``None`` for loaders and outside a run."""
    trainer = run._trainer if isinstance(run, LightningModule) else run  # its public name raises an error outside
    return getattr(trainer, "datamodule", None)  # set by Lightning's data connector, not by the Trainer's constructor


def info_of(run: LightningModule | Trainer | None) -> DataInfo | None:
    """The description of the data of a run; ``None`` unless a data module of this package serves it."""
    data = datamodule_of(run)
    return data.info() if isinstance(data, ServesData) else None
