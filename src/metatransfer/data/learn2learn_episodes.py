"""Episodes of learn2learn's data sets and benchmarks."""

from __future__ import annotations

import random
from collections.abc import Iterator
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

from metatransfer.batches import Episode, MetaBatch
from metatransfer.checks import check_choice
from metatransfer.data.augment import Augmentation
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images.looking import in_mode
from metatransfer.data.samplers import SPLITS, Stream, TaskSampler
from metatransfer.data.sources import Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_permutations, stream_keys

BENCHMARKS = ("omniglot", "mini-imagenet", "tiered-imagenet", "fc100", "cifarfs")
# what learn2learn 0.2.0 looks for in its root before it downloads
_FILES = {
    "omniglot": "omniglot-py/images_background.zip and images_evaluation.zip (torchvision checks their MD5)",
    "mini-imagenet": "mini-imagenet-cache-train.pkl, and -validation.pkl and -test.pkl likewise",
    "tiered-imagenet": "the folder tiered-imagenet with <train, val, test>_images_png.pkl and _labels.pkl",
    "fc100": "FC100_train.pickle, FC100_val.pickle and FC100_test.pickle",
    "cifarfs": "the folder cifarfs/processed with train, val and test, each of <class>/<image>",
}


class Learn2LearnEpisodes(EpisodicDataModule):
    """Few-shot episodes of what learn2learn serves (Arnold et al. 2020, 2008.12284); needs the extra ``learn2learn``.

    In Python, a ``MetaDataset`` for each split, or a ``Taskset`` (``TaskDataset``), whose data set is taken:

    .. code-block:: python

        Learn2LearnEpisodes(train=l2l.data.MetaDataset(mine), test=l2l.data.MetaDataset(others))

    On the command line the name of one of its benchmarks. Either way the classes are learn2learn's and the episodes
    ours: its task transforms are used with ``own_tasks`` only. The benchmark ``omniglot`` turns each class at random in
    each episode, and its random split follows ``split_seed``; its own tasks are refused, since learn2learn 0.2.0 draws
    those of every split from all 1623 classes. learn2learn keeps the labels of every benchmark, and the images of most,
    in pickles in ``root``, which run code when it reads them: use files that you trust, or ``ImageFolderEpisodes`` and
    ``CIFARFewShotEpisodes``, which read none. The remaining arguments are those of :class:`EpisodicDataModule`.

    Args:
        benchmark: ``"omniglot"``, ``"mini-imagenet"``, ``"tiered-imagenet"``, ``"fc100"`` or ``"cifarfs"``.
        root: the folder of the benchmark's files; learn2learn downloads what is missing where there is a network.
        train: data set of the training split, where there is no ``benchmark``.
        val: data set of the validation split.
        test: data set of the test split.
        split_seed: which random split of the benchmark ``omniglot``.
        own_tasks: serve the tasks that a ``Taskset``'s transforms draw instead of ours. They must have ``num_ways``
            classes of ``num_shots + num_queries`` samples, which are divided at random; labels are drawn anew.
        **episodes: arguments of :class:`EpisodicDataModule`.

    Raises:
        UserError: neither a benchmark nor data sets, or both, or an unknown benchmark.
    """

    def __init__(
        self,
        benchmark: str | None = None,
        root: str = "data",
        train: Any = None,  # noqa: ANN401
        val: Any = None,  # noqa: ANN401
        test: Any = None,  # noqa: ANN401
        split_seed: int = 0,
        own_tasks: bool = False,
        **episodes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**episodes)
        given = {"train": train, "val": val, "test": test}
        if (benchmark is None) == all(data is None for data in given.values()):
            raise UserError(
                "give either the name of a learn2learn benchmark or its data sets as train, val and test, in Python."
            )
        if benchmark is not None:
            check_choice("benchmark", benchmark, BENCHMARKS)
        self.benchmark = benchmark
        self.root = root
        self.split_seed = split_seed
        self.own_tasks = own_tasks
        self._given = given
        if benchmark == "omniglot":
            self.default_rotations = {"train": "per_class", "val": "per_class", "test": "per_class"}

    def source(self, split: str) -> Source:
        """The classes of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A source that reads each sample when it is drawn.
        """
        return Learn2LearnSource(*self._data(split))

    def sampler(self, split: str) -> TaskSampler:
        """As of the base; learn2learn's own tasks where they are asked for.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            What draws the episodes of a split.

        Raises:
            UserError: fewer tasks of its own than episodes of an evaluation.
        """
        if not self.own_tasks:
            return super().sampler(split)
        data, name = self._data(split)
        tasks = Learn2LearnTasks(data, name, split, self.seed, **self.shape(split))
        count, episodes = tasks.tasks.num_tasks, self.num_episodes[split]
        if split != "train" and -1 < count < episodes:
            raise UserError(
                f"{name}: its {count} tasks would be counted several times in {split}_episodes={episodes}, and the "
                f"interval would be too narrow: set {split}_episodes to {count} at most, or num_tasks=-1."
            )
        return tasks

    def _data(self, split: str) -> tuple[Any, str]:
        """What was given or loaded for a split, and how to call it.

        Raises:
            UserError: no data set for the split.
        """
        if self.benchmark is not None and self._given[split] is None:
            train, test = (self.shape(one) for one in ("train", "test"))
            self._given = _benchmark(
                self.benchmark, self.root, self.split_seed,
                train_ways=train["num_ways"], train_samples=train["num_shots"] + train["num_queries"],
                test_ways=test["num_ways"], test_samples=test["num_shots"] + test["num_queries"],
            )  # fmt: skip
        data = self._given[split]
        if data is None:
            raise UserError(f"there is no learn2learn data set for {split}: give it as {split}=.")
        return data, f"{self.benchmark or type(data).__name__} {split}"

    def convert_image(self, image: Image.Image) -> Tensor:
        """Nothing: how an image file is to look is known to the data set's own transform only.

        Raises:
            UserError: always.
        """
        raise UserError("learn2learn's data sets do not say how to read image files, so folders cannot be predicted.")

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the benchmark."""
        split = f"learn2learn's {self.benchmark}" if self.benchmark else "learn2learn data sets, as given"
        return super().protocol() | {
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
        """Asks the data set for each sample.

        Args:
            indices: int64 of any shape.
            device: where the samples are wanted.

        Returns:
            ``(*indices.shape, *sample_shape)`` float32; images of bytes or of PIL in [0, 1].

        Raises:
            UserError: samples of different shapes.
        """
        samples = [self._sample(index) for index in indices.flatten().tolist()]
        shapes = {tuple(sample.shape) for sample in samples}
        if len(shapes) > 1:
            raise UserError(
                f"{self.name}: samples have different shapes, {sorted(shapes)[:2]}: give the data set a transform that "
                "brings them to one size."
            )
        stacked = torch.stack(samples) if samples else torch.empty(0, *self.sample_shape)
        return stacked.view(*indices.shape, *stacked.shape[1:]).to(device)

    def _sample(self, index: int) -> Tensor:
        place = int(self._places[index])
        return _as_tensor(self.data[place][0], f"{self.name}: sample {place}")


class Learn2LearnTasks(TaskSampler):
    """The tasks of a ``Taskset``, by their index: its transforms draw from generators that are seeded for each task.

    A task set with ``num_tasks`` is gone through again and again; tasks that it has drawn before are kept as they are.

    Args:
        tasks: the ``Taskset``.
        name: how to call it in messages.
        split: ``"train"``, ``"val"`` or ``"test"``; part of the key.
        seed: part of the key.
        num_ways: classes that a task must have.
        num_shots: support samples of each class.
        num_queries: query samples of each class.

    Raises:
        UserError: no ``Taskset``, or one that draws from classes outside its data set.
    """

    in_memory = False

    def __init__(
        self,
        tasks: Any,  # noqa: ANN401
        name: str,
        split: str,
        seed: int,
        *,
        num_ways: int,
        num_shots: int,
        num_queries: int,
    ) -> None:
        if not isinstance(tasks, _learn2learn().data.Taskset):
            raise UserError(
                f"{name}: own_tasks needs a learn2learn Taskset, but this is a {type(tasks).__name__}: give one, or "
                "leave out own_tasks."
            )
        self.tasks = tasks
        self.name = name
        self.split = split
        self.seed = seed
        self.num_ways, self.num_shots, self.num_queries = num_ways, num_shots, num_queries
        self._check_classes()

    def _check_classes(self) -> None:
        """Refuses tasks of classes that the split does not have: the first transform draws from its own data set.

        Raises:
            UserError: with the numbers of classes.
        """
        first = next(iter(self.tasks.task_transforms), None) if not callable(self.tasks.task_transforms) else None
        base = getattr(first, "dataset", None)
        asked = (getattr(first, "filter_labels", None), getattr(first, "labels", None), getattr(base, "labels", None))
        drawn = set(next((labels for labels in asked if labels), ()))
        if outside := drawn - set(self.tasks.dataset.labels):
            raise UserError(
                f"{self.name}: its {type(first).__name__} draws from {len(drawn)} classes, of which {len(outside)} are "
                "not in the split's data set, so splits would share classes: leave out own_tasks, or make the "
                "transforms of the data set that the Taskset has."
            )

    def episodes(
        self, indices: NDArray[np.int64], device: torch.device, augmentation: Augmentation | None = None
    ) -> MetaBatch:
        """Draws and reads each task, and divides it into support and query.

        Args:
            indices: ``(T,)`` from 0 on.
            device: where the tensors are wanted.
            augmentation: applied to every sample.

        Returns:
            The episodes.

        Raises:
            UserError: tasks whose samples have different shapes.
        """
        tasks = [self._task(int(index)) for index in indices]
        shapes = {tuple(task.support_x.shape[2:]) for task in tasks}
        if len(shapes) > 1:
            raise UserError(
                f"{self.name}: tasks have samples of different shapes, {sorted(shapes)[:2]}: give the data set a "
                "transform that brings them to one size."
            )
        support_x, support_y, query_x, query_y = (torch.cat(part).to(device) for part in zip(*tasks, strict=True))
        if augmentation is not None:
            keys = self._keys(indices).view(np.int64)
            support_x = augmentation.batch(support_x, stream_keys(keys, Stream.SUPPORT))
            query_x = augmentation.batch(query_x, stream_keys(keys, Stream.QUERY))
        return Episode(support_x, support_y, query_x, query_y)

    def _keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        return stream_keys(self.seed, SPLITS.index(self.split), indices)

    def _task(self, index: int) -> Episode:
        key = self._keys(np.array([index]))
        place = index if self.tasks.num_tasks == -1 else index % self.tasks.num_tasks
        drawing = int(self._keys(np.array([place]))[0])
        with _seeded(drawing):
            # not by tasks[place], which would remember every task, and draw other numbers for those that it remembers
            description = self.tasks.sampled_descriptions.get(place) or self._described()
        with _seeded(drawing + 1):
            samples, labels = self.tasks.get_task(description)[:2]
        x = _as_tensor(samples, f"{self.name}: task {place}")
        labels = labels.cpu() if isinstance(labels, Tensor) else labels
        y = np.unique(np.asarray(labels), return_inverse=True)[1]
        counts = np.bincount(y)
        if len(counts) != self.num_ways or (counts != self.num_shots + self.num_queries).any():
            raise UserError(
                f"{self.name}: task {place} has {len(counts)} classes of {counts.min()} to {counts.max()} samples, but "
                f"num_ways={self.num_ways}, num_shots={self.num_shots} and num_queries={self.num_queries} need "
                f"{self.num_ways} classes of {self.num_shots + self.num_queries}: change these or the task transforms."
            )
        y = random_permutations(key, self.num_ways)[0][y]
        order = random_permutations(key, len(y), start=self.num_ways)[0]
        x, y = x[torch.from_numpy(order)], y[order]
        rank = np.tril(y[:, None] == y).sum(1)  # the how-manieth of its class
        parts = (torch.from_numpy(rank <= self.num_shots), torch.from_numpy(rank > self.num_shots))
        support, query = ((x[part][None], torch.from_numpy(y)[part][None]) for part in parts)
        return Episode(*support, *query)

    def _described(self) -> Any:  # noqa: ANN401
        """A task by the transforms.

        Raises:
            UserError: they ask for more than there is.
        """
        try:
            return self.tasks.sample_task_description()
        except ValueError as error:
            raise UserError(
                f"{self.name}: its transforms cannot draw a task ({error}): ask them for fewer classes or samples."
            ) from error


def _as_tensor(sample: object, where: str) -> Tensor:
    """A sample, or several, as float32; bytes and PIL images in [0, 1].

    Raises:
        UserError: something that is neither tensor nor array nor PIL image.
    """
    if isinstance(sample, Image.Image):
        grey = sample.mode in ("1", "L", "LA", "La", "F") or sample.mode.startswith("I")
        pixels = np.array(in_mode(sample, 1 if grey else 3))
        sample = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
    elif isinstance(sample, np.ndarray):
        sample = torch.from_numpy(sample)
    if not isinstance(sample, Tensor):
        raise UserError(
            f"{where} is a {type(sample).__name__}, but must be a tensor, an array or a PIL image: give the data set a "
            "transform such as torchvision's ToTensor."
        )
    return sample.float() / 255 if sample.dtype == torch.uint8 else sample.float()


def _learn2learn() -> ModuleType:
    """The package, or a sentence.

    Raises:
        UserError: it is not installed, or does not work.
    """
    try:
        import learn2learn
    except ImportError as error:
        raise UserError(
            f"learn2learn cannot be imported ({error}): install the extra, pip install 'metatransfer[learn2learn]', or "
            "on Python 3.11 and later run tools/build_learn2learn.py --install from the project's sources."
        ) from error
    return learn2learn  # type: ignore[no-any-return]


def _benchmark(name: str, root: str, seed: int, **sizes: int) -> dict[str, Any]:
    """The data sets of a benchmark.

    Raises:
        UserError: its files are not there and cannot be downloaded.
    """
    _learn2learn()
    from learn2learn.vision.benchmarks import get_tasksets

    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        # mini-ImageNet comes in 0 .. 255 else; the other benchmarks are in [0, 1] with and without it
        with _seeded(seed):
            tasksets = get_tasksets(name, root=root, data_augmentation="normalize", **sizes)
    except Exception as error:  # each of its loaders fails in a way of its own
        raise UserError(
            f"learn2learn cannot load its benchmark '{name}' from '{root}' ({type(error).__name__}: "
            f"{shorten(str(error), 120)}): put "
            f"{_FILES[name]} there."
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
