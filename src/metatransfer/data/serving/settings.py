"""Groups of arguments of the data modules."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from metatransfer.checks import check_choice, check_count, check_folder, check_seed
from metatransfer.data.sampling.augment import Augmentation, Changes, check_deterministic
from metatransfer.data.sampling.shapes import EpisodeSize, FixedShape, TaskShape
from metatransfer.data.sources import SPLITS
from metatransfer.errors import UserError

__all__ = ["Division", "DomainDivision", "EpisodeFiles", "Episodes", "EvalTask", "PredictFolders", "Processing", "Task"]

_MOST_WAYS = 10**5  # the output layer has as many columns, even before the data are opened
Rotation = Literal["none", "classes", "per_class"]


@dataclass(frozen=True)
class Task:
    """Size of the training episodes.

    Args:
        num_ways: classes of an episode.
        num_shots: support samples of each class.
        num_queries: query samples of each class.
        shape: varies ways and shots from episode to episode, e.g. ``MetaDatasetShape``.
        within_groups: draw all classes of an episode from one group of the data (alphabet, superclass); defaults to
            the usual protocol of the data.
    """

    num_ways: int = 5
    num_shots: int = 1
    num_queries: int = 15
    shape: TaskShape | None = None
    within_groups: bool | None = None

    def __post_init__(self) -> None:
        check_count(1, _MOST_WAYS, num_ways=self.num_ways)
        check_count(num_shots=self.num_shots, num_queries=self.num_queries)

    @property
    def size(self) -> EpisodeSize:
        """The three numbers."""
        return EpisodeSize(self.num_ways, self.num_shots, self.num_queries)

    @property
    def kind(self) -> TaskShape:
        """The shape, by default a fixed one."""
        return self.shape or FixedShape()

    def card(self, *, ways: bool = True) -> dict[str, Any]:
        """For the protocol card; generated tasks have no ways."""
        numbers = {name: value for name, value in self.size._asdict().items() if ways or name != "num_ways"}
        return numbers | ({} if type(self.kind) is FixedShape else {"shape": repr(self.kind)})


@dataclass(frozen=True)
class EvalTask:
    """Size of the validation and test episodes; every value defaults to that of the training ``Task``.

    Args:
        num_ways: classes of an episode.
        num_shots: support samples of each class.
        num_queries: query samples of each class.
        shape: varies ways and shots from episode to episode.
        within_groups: draw all classes of an episode from one group of the data.
    """

    num_ways: int | None = None
    num_shots: int | None = None
    num_queries: int | None = None
    shape: TaskShape | None = None
    within_groups: bool | None = None

    def __post_init__(self) -> None:
        check_count(1, _MOST_WAYS, num_ways=self.num_ways)
        check_count(num_shots=self.num_shots, num_queries=self.num_queries)

    def after(self, task: Task) -> Task:
        """The complete task, with the values of the training task as defaults."""
        return replace(task, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Episodes:
    """Number of episodes, and the seed of those of training.

    Args:
        train: episodes of a training epoch, over all processes.
        val: validation episodes.
        test: test episodes.
        per_batch: episodes of a meta-batch, in each process.
        train_seed: seed of the training episodes; defaults to that of the data module, which all others have.
    """

    train: int = 3200
    val: int = 200
    test: int = 600
    per_batch: int = 16
    train_seed: int | None = None

    def __post_init__(self) -> None:
        check_count(1, 10**9, **{f"episodes.{split}": getattr(self, split) for split in SPLITS})
        check_count(**{"episodes.per_batch": self.per_batch})
        check_seed(**{"episodes.train_seed": self.train_seed})


@dataclass(frozen=True)
class Division:
    """Random division of undivided data: by class for episodes, otherwise by sample within each class.

    Args:
        val_fraction: fraction for validation; defaults to 0.2 for episodes, and otherwise to 0.1 of each class.
        test_fraction: fraction for the test.
        seed: seed of the division; defaults to 0 for episodes, and otherwise to the seed of the data module.
        by: for episodes: ``"class"`` tests on classes that are not trained on; ``"sample"`` divides the samples of each
            class, so that a few classes suffice, but tests on new samples of the trained classes only.

    Raises:
        UserError: fractions that leave nothing to train on, an invalid seed, or an unknown ``by``.
    """

    val_fraction: float | None = None
    test_fraction: float = 0.2
    seed: int | None = None
    by: Literal["class", "sample"] | None = None

    def __post_init__(self) -> None:
        check_choice("by", self.by or "class", ("class", "sample"))
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(
                    f"{name} is a fraction of the data and must be above 0 and below 1, but is {value}: give for "
                    "example 0.2 for a fifth."
                )
        self.fractions(0.0)
        check_seed(seed=self.seed)

    def fractions(self, val: float) -> dict[str, float]:
        """The fractions for validation, which defaults to ``val``, and for the test, if they leave a training part."""
        given = self.val_fraction is not None
        val = self.val_fraction or val
        if val + self.test_fraction >= 1:
            raise UserError(
                f"val_fraction + test_fraction must be below 1 to leave something to train on, but are {val}"
                f"{'' if given else ' (the default)'} + {self.test_fraction}: "
                f"{'lower one of them' if given else 'set val_fraction, or lower test_fraction'}."
            )
        return {"val": val, "test": self.test_fraction}


@dataclass(frozen=True)
class DomainDivision:
    """Division of domains.

    Args:
        transductive: whether all samples of a target are training, validation and test samples at once: the protocol
            of small data sets such as Office-Caltech10. An undivided source then has no test split.
        hold_out_source: whether the validation samples of the sources are held out from training. The protocol of
            small data sets trains on all of them; results on these samples are then too optimistic.
    """

    transductive: bool = False
    hold_out_source: bool = True


@dataclass(frozen=True)
class Processing:
    """Processing of samples after they are read.

    Args:
        augmentation: random transforms of the training samples, e.g. ``RandomAffine`` or ``TorchvisionTransforms``.
        transform: fixed transforms of all samples, from ``torchvision.transforms.v2``, in batch on the device; applied
            last (e.g. ``Normalize``).
        rotations: for episodes: ``"none"``, ``"classes"`` (each class becomes four, rotated by multiples of 90 degrees)
            or ``"per_class"`` (each class is rotated at random in each episode), for all splits or by split; defaults
            to the usual protocol of the data.
        mix: for labelled batches: mixes the samples of a training batch and their labels,
            ``torchvision.transforms.v2.MixUp`` or ``CutMix``.

    Raises:
        UserError: a random ``transform``, or an unknown rotation or split.
    """

    augmentation: Augmentation | None = None
    transform: list[nn.Module] | None = None
    rotations: dict[str, Rotation] | Rotation | None = None
    mix: nn.Module | None = None

    def __post_init__(self) -> None:
        check_deterministic(self.transform or ())
        given = self.rotations if isinstance(self.rotations, dict) else {"train": self.rotations}
        for split, rotation in given.items():
            check_choice("rotations' split", split, SPLITS)
            check_choice("rotations", rotation or "none", get_args(Rotation))

    def changes(self, *, training: bool) -> Changes:
        """The processing of training or evaluation samples."""
        return Changes(self.augmentation if training else None, tuple(self.transform or ()))

    def rotations_of(self, default: Mapping[str, Rotation]) -> dict[str, Rotation]:
        """The rotations of each split, with those of the collection as default."""
        given = self.rotations
        chosen = default if given is None else given if isinstance(given, dict) else dict.fromkeys(SPLITS, given)
        return {split: chosen.get(split, "none") for split in SPLITS}


@dataclass(frozen=True)
class EpisodeFiles:
    """Episodes stored in files, to evaluate on exactly the same tasks.

    Args:
        export: folder to write the episodes of each evaluation to, as ``val.npz`` or ``test.npz``.
        use: folder of such files, or the file of each split, to serve instead of drawing episodes. The samples must be
            those that the file was made from; ``episodes.val`` and ``episodes.test`` are ignored.
    """

    export: str | None = None
    use: dict[str, str] | str | None = None

    def __post_init__(self) -> None:
        for split in self.use if isinstance(self.use, dict) else ():
            check_choice("files.use's split", split, ("val", "test"))

    def path(self, split: str) -> Path | None:
        """The file of a split's episodes, ``None`` if they are drawn."""
        if isinstance(self.use, dict):
            return Path(self.use[split]) if split in self.use else None
        if self.use is None or split == "train":
            return None
        folder = check_folder(self.use, "files.use")
        if not any((folder / f"{one}.npz").exists() for one in ("val", "test")):
            raise UserError(f"files.use: '{folder}' contains neither val.npz nor test.npz; give the folder of both.")
        path = folder / f"{split}.npz"
        return path if path.exists() else None


@dataclass(frozen=True)
class PredictFolders:
    """Folders for ``lightning predict``.

    Args:
        support: folder ``<label>/<image>`` of labelled examples.
        query: folder of images to label.
    """

    support: str | None = None
    query: str | None = None
