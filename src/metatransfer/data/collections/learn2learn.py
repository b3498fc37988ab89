"""What learn2learn serves: its data sets, its benchmarks and, where asked for, its tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_choice
from metatransfer.data.collections.base import Collection, LazyParts
from metatransfer.data.readers.pixels import PixelLook
from metatransfer.data.sources import SPLITS, Source, TaskGenerator
from metatransfer.errors import UserError
from metatransfer.functional.random import Bits, random_permutations

# what learn2learn 0.2.0 looks for in its root before it downloads
_FILES = {
    "omniglot": "omniglot-py/images_background.zip and images_evaluation.zip (torchvision checks their MD5)",
    "mini-imagenet": "mini-imagenet-cache-<train, validation, test>.pkl",
    "tiered-imagenet": "the folder tiered-imagenet with <train, val, test>_images_png.pkl and _labels.pkl",
    "fc100": "FC100_train.pickle, FC100_val.pickle and FC100_test.pickle",
    "cifarfs": "the folder cifarfs/processed with train, val and test, each of <class>/<image>",
}
BENCHMARKS = tuple(_FILES)


class Learn2Learn(Collection):
    """Data sets of learn2learn (Arnold et al. 2020, 2008.12284); needs the extra ``learn2learn``.

    In Python, a ``MetaDataset`` for each split, or a ``Taskset`` (``TaskDataset``), whose data set is taken; on the
    command line the name of one of its benchmarks. Either way the classes are learn2learn's and the episodes ours. The
    benchmark ``omniglot`` turns each class at random in each episode, and its random split follows ``split_seed``.
    learn2learn keeps the labels of every benchmark, and the images of most, in pickles in ``root``, which run code when
    it reads them: use files that you trust, or ``ImageFolder`` and ``CIFARFewShot``, which read none.

    Args:
        benchmark: ``"omniglot"``, ``"mini-imagenet"``, ``"tiered-imagenet"``, ``"fc100"`` or ``"cifarfs"``.
        root: the folder of the benchmark's files; learn2learn downloads what is missing where there is a network.
        train: data set of the training split, where there is no ``benchmark``.
        val: data set of the validation split.
        test: data set of the test split.
        split_seed: which random split of the benchmark ``omniglot``.
        own_tasks: serve the tasks that the transforms of the given ``Taskset``s draw instead of ours. The classes of a
            task must have as many samples as the episodes ask for (shots + queries), which are divided at random;
            labels are drawn anew. ``num_tasks`` must be -1, so that no task is served twice.

    Raises:
        UserError: neither a benchmark nor data sets, or both, or an unknown benchmark.
    """

    divided_by = "class"

    def __init__(
        self,
        benchmark: str | None = None,
        root: str = "data",
        train: Any = None,  # noqa: ANN401
        val: Any = None,  # noqa: ANN401
        test: Any = None,  # noqa: ANN401
        split_seed: int = 0,
        own_tasks: bool = False,
    ) -> None:
        given = {split: data for split, data in zip(SPLITS, (train, val, test), strict=True) if data is not None}
        if (benchmark is None) != bool(given):
            raise UserError(
                "give either the name of a learn2learn benchmark or its data sets as train, val and test, in Python."
            )
        if benchmark is not None:
            check_choice("benchmark", benchmark, BENCHMARKS)
            if own_tasks:
                raise UserError("own_tasks needs learn2learn Tasksets as train, val and test: leave out the benchmark.")
        self.benchmark, self.root, self.split_seed, self.own_tasks = benchmark, root, split_seed, own_tasks
        self._given: dict[str, Any] = given
        if benchmark == "omniglot":
            self.rotations = dict.fromkeys(SPLITS, "per_class")

    def parts(self) -> Mapping[str, Source | TaskGenerator]:
        """The samples of each split, each read when it is drawn; or generators of its tasks."""
        if self.benchmark is not None and not self._given:
            self._given = _benchmark(self.benchmark, self.root, self.split_seed)
        names = {split: f"{self.benchmark or type(data).__name__} {split}" for split, data in self._given.items()}
        if self.own_tasks:
            return {split: Learn2LearnTasks(data, names[split]) for split, data in self._given.items()}
        return LazyParts(lambda split: Learn2LearnSource(self._given[split], names[split]), list(self._given))

    def protocol(self) -> dict[str, Any]:
        """The benchmark, and who draws the tasks."""
        split = f"learn2learn's {self.benchmark}" if self.benchmark else "learn2learn data sets, as given"
        return {
            "split": f"{split}, split seed {self.split_seed}" if self.benchmark == "omniglot" else split,
            "tasks": "drawn by learn2learn" if self.own_tasks else "drawn by metatransfer",
        }


class Learn2LearnSource(Source):
    """The samples of a learn2learn ``MetaDataset``, each read when it is drawn.

    Args:
        data: a ``MetaDataset``, or a ``Taskset`` over one.
        name: how to call the set in messages.

    Raises:
        UserError: something else.
    """

    def __init__(self, data: Any, name: str) -> None:  # noqa: ANN401
        l2l = _learn2learn()
        found = data.dataset if isinstance(data, l2l.data.Taskset) else data
        if not isinstance(found, l2l.data.MetaDataset):
            raise UserError(
                f"{name}: a learn2learn MetaDataset or Taskset is needed, but this is a {type(data).__name__}: wrap a "
                "data set of images and labels as learn2learn.data.MetaDataset(data)."
            )
        self.data = found
        # numbers in order, then whatever else there is: the order of a dictionary would be that of the samples
        classes = sorted(found.labels_to_indices, key=lambda label: (isinstance(label, str), label))
        members = [np.sort(np.asarray(found.labels_to_indices[label], dtype=np.int64)) for label in classes]
        self._places: NDArray[np.int64] = np.concatenate([*members, np.empty(0, np.int64)])
        labels = np.repeat(np.arange(len(classes)), [len(one) for one in members])
        super().__init__(labels, [str(label) for label in classes], name)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the first sample; all must have it."""
        return tuple(self._sample(0).shape)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """Asks the data set for each sample."""
        samples = [self._sample(index) for index in indices.flatten().tolist()]
        _check_shapes(samples, self.name)
        stacked = torch.stack(samples) if samples else torch.empty(0, *self.sample_shape)
        return stacked.view(*indices.shape, *stacked.shape[1:]).to(device)

    def _sample(self, index: int) -> Tensor:
        place = int(self._places[index])
        return _as_tensor(self.data[place][0], f"{self.name}: sample {place}")


class Learn2LearnTasks(TaskGenerator):
    """The tasks of a ``Taskset``: its transforms draw from generators that are seeded for each task.

    Args:
        tasks: the ``Taskset``.
        name: how to call it in messages.

    Raises:
        UserError: not a ``Taskset``, one with a number of tasks, or one that draws from classes outside its data set.
    """

    def __init__(self, tasks: Any, name: str) -> None:  # noqa: ANN401
        if not isinstance(tasks, _learn2learn().data.Taskset):
            raise UserError(
                f"{name}: own_tasks needs a learn2learn Taskset, but this is a {type(tasks).__name__}: give one, or "
                "leave out own_tasks."
            )
        if tasks.num_tasks != -1:
            raise UserError(
                f"{name}: its {tasks.num_tasks} tasks would be counted several times, and intervals would be too "
                "narrow: make the Taskset with num_tasks=-1."
            )
        self.tasks, self.name = tasks, name
        self._check_classes()

    def _check_classes(self) -> None:
        # raises an error for tasks of classes that the split does not have
        transforms = self.tasks.task_transforms
        first = next(iter(transforms), None) if not callable(transforms) else None
        # the first transform draws from its own data set
        base = getattr(first, "dataset", None)
        asked = (getattr(first, "filter_labels", None), getattr(first, "labels", None), getattr(base, "labels", None))
        drawn = set(next((labels for labels in asked if labels), ()))
        if outside := drawn - set(self.tasks.dataset.labels):
            raise UserError(
                f"{self.name}: its {type(first).__name__} draws from {len(drawn)} classes, of which {len(outside)} are "
                "not in the split's data set, so splits would share classes: leave out own_tasks, or make the "
                "transforms of the data set that the Taskset has."
            )

    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Draws and reads each task, and divides it into support and query."""
        tasks = [self._task(key, num_shots, num_queries) for key in np.split(keys, len(keys))]
        _check_shapes([task.support_x[0, 0] for task in tasks], self.name)
        return Episode(*(torch.cat(part).to(device) for part in list(zip(*tasks, strict=True))[:4]))

    def _task(self, key: Bits, num_shots: int, num_queries: int) -> Any:  # noqa: ANN401
        with _seeded(int(key[0])):
            description = self._described()
        with _seeded(int(key[0]) + 1):
            samples, labels = self.tasks.get_task(description)[:2]
        x = _as_tensor(samples, f"{self.name}: a task")
        y = np.unique(np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels), return_inverse=True)[1]
        counts = np.bincount(y)
        if (counts != num_shots + num_queries).any():
            raise UserError(
                f"{self.name}: a task has {len(counts)} classes of {counts.min()} to {counts.max()} samples, but "
                f"num_shots={num_shots} and num_queries={num_queries} need {num_shots + num_queries} of each: change "
                "these or the task transforms."
            )
        y = random_permutations(key, len(counts))[0][y]
        order = random_permutations(key, len(y), start=len(counts))[0]
        x, y = x[torch.from_numpy(order)], y[order]
        rank = np.tril(y[:, None] == y).sum(1)  # the how-manieth of its class
        parts = (torch.from_numpy(rank <= num_shots), torch.from_numpy(rank > num_shots))
        support, query = ((x[part][None], torch.from_numpy(y)[part][None]) for part in parts)
        return Episode(*support, *query)

    def _described(self) -> Any:  # noqa: ANN401
        # A task by the transforms
        try:
            # not by tasks[place], which would remember every task
            return self.tasks.sample_task_description()
        except ValueError as error:
            raise UserError(
                f"{self.name}: its transforms cannot draw a task ({error}): ask them for fewer classes or samples."
            ) from error


def _check_shapes(samples: list[Tensor], name: str) -> None:
    shapes = {tuple(sample.shape) for sample in samples}
    if len(shapes) > 1:
        raise UserError(
            f"{name}: samples have different shapes, {sorted(shapes)[:2]}: give the data set a transform that brings "
            "them to one size."
        )


def _as_tensor(sample: object, where: str) -> Tensor:
    # A sample, or several, as float32; bytes and PIL images in [0, 1]
    if isinstance(sample, Image.Image):
        sample = PixelLook()(sample)
    elif isinstance(sample, np.ndarray):
        sample = torch.from_numpy(sample)
    if not isinstance(sample, Tensor):
        raise UserError(
            f"{where} is a {type(sample).__name__}, but must be a tensor, an array or a PIL image: give the data set a "
            "transform such as torchvision's ToTensor."
        )
    return sample.float() / 255 if sample.dtype == torch.uint8 else sample.float()


def _learn2learn() -> ModuleType:
    # the package
    try:
        import learn2learn
    except ImportError as error:
        raise UserError(
            f"learn2learn cannot be imported ({error}): install the extra, pip install 'metatransfer[learn2learn]', or "
            "on Python 3.11 and later run tools/build_learn2learn.py --install from the project's sources."
        ) from error
    return learn2learn  # type: ignore[no-any-return]


def _benchmark(name: str, root: str, seed: int) -> dict[str, Any]:
    # the data sets of a benchmark
    _learn2learn()
    from learn2learn.vision.benchmarks import get_tasksets

    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        # mini-ImageNet comes in 0 .. 255 else; the other benchmarks are in [0, 1] with and without it
        with _seeded(seed):
            tasksets = get_tasksets(name, root=root, data_augmentation="normalize")
    except Exception as error:  # each of its loaders fails in a way of its own
        raise UserError(
            f"learn2learn cannot load its benchmark '{name}' from '{root}' ({type(error).__name__}: "
            f"{shorten(str(error), 120)}): put {_FILES[name]} there."
        ) from error
    return dict(zip(SPLITS, tasksets, strict=True))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds what learn2learn and transforms draw from, for a while: the generators of Python, numpy and torch."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would reach for the GPUs' as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
