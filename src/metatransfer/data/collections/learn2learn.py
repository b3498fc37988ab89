"""Data sets, benchmarks and tasks of learn2learn."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_choice
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.sources import SPLITS, Collection, LazyParts, Source, TaskGenerator
from metatransfer.errors import UserError, explained
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

    In Python, give a ``MetaDataset`` for each split, or a ``Taskset`` (``TaskDataset``), whose data set is used; on the
    command line, the name of a benchmark. The classes are learn2learn's and the episodes are drawn by metatransfer. The
    benchmark ``omniglot`` rotates each class at random in each episode, and its random split follows ``split_seed``.
    learn2learn stores the labels of every benchmark, and the images of most, as pickles in ``root``, which can run code
    when they are read: use only files that you trust, or ``ImageFolder`` and ``CIFARFewShot``.

    Args:
        benchmark: ``"omniglot"``, ``"mini-imagenet"``, ``"tiered-imagenet"``, ``"fc100"`` or ``"cifarfs"``.
        root: folder of the benchmark's files; learn2learn downloads missing files if there is a network.
        train: data set of the training split, if there is no ``benchmark``.
        val: data set of the validation split.
        test: data set of the test split.
        split_seed: seed of the random split of the benchmark ``omniglot``.
        own_tasks: serve the tasks that the transforms of the ``Taskset``s draw. Each class of a task must have
            shots + queries samples, which are divided at random; labels are assigned anew. ``num_tasks`` must be -1,
            so that no task is served twice.

    Raises:
        UserError: the benchmark is unknown, or not exactly one of benchmark and data sets is given.
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
        if benchmark is not None and own_tasks:
            raise UserError("own_tasks needs learn2learn Tasksets as train, val and test: leave out the benchmark.")
        self.benchmark, self.root, self.split_seed, self.own_tasks = benchmark, root, split_seed, own_tasks
        self._given: dict[str, Any] = given
        if benchmark == "omniglot":
            self.rotations = dict.fromkeys(SPLITS, "per_class")

    def parts(self) -> Mapping[str, Source | TaskGenerator]:
        """The samples of each split, read when they are drawn; with ``own_tasks`` generators of tasks."""
        given = self._given or _benchmark(str(self.benchmark), self.root, self.split_seed)
        names = {split: f"{self.benchmark or type(data).__name__} {split}" for split, data in given.items()}
        if self.own_tasks:
            return {split: _Tasks(data, names[split]) for split, data in given.items()}
        return LazyParts(lambda split: _Samples(given[split], names[split]), list(given))

    def protocol(self) -> dict[str, Any]:
        """The benchmark, and whether learn2learn or metatransfer draws the tasks."""
        split = f"learn2learn's {self.benchmark}" if self.benchmark else "learn2learn data sets, as given"
        return {
            "split": f"{split}, split seed {self.split_seed}" if self.benchmark == "omniglot" else split,
            "tasks": "drawn by learn2learn" if self.own_tasks else "drawn by metatransfer",
        }


class _Samples(Source):
    """The samples of a ``MetaDataset``, or of a ``Taskset`` over one, read when they are drawn."""

    def __init__(self, data: Any, name: str) -> None:  # noqa: ANN401
        l2l = _learn2learn()
        self.data = data.dataset if isinstance(data, l2l.data.Taskset) else data
        if not isinstance(self.data, l2l.data.MetaDataset):
            raise UserError(
                f"{name}: expected a learn2learn MetaDataset or Taskset, but got a {type(data).__name__}: wrap a data "
                "set of images and labels as learn2learn.data.MetaDataset(data)."
            )
        # numbers first, in order: a dictionary's own order depends on the samples
        classes = sorted(self.data.labels_to_indices, key=lambda label: (isinstance(label, str), label))
        members = [np.sort(np.asarray(self.data.labels_to_indices[label], dtype=np.int64)) for label in classes]
        self._places: NDArray[np.int64] = np.concatenate([*members, np.empty(0, np.int64)])
        labels = np.repeat(np.arange(len(classes)), [len(one) for one in members])
        super().__init__(labels, [str(label) for label in classes], name)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self._sample(0).shape)

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        samples = [self._sample(index) for index in indices.flatten().tolist()]
        _check_shapes(samples, self.name)
        stacked = torch.stack(samples) if samples else torch.empty(0, *self.sample_shape)
        return stacked.view(*indices.shape, *stacked.shape[1:]).to(device)

    def _sample(self, index: int) -> Tensor:
        place = int(self._places[index])
        return _as_tensor(self.data[place][0], f"{self.name}: sample {place}")


class _Tasks(TaskGenerator):
    """The tasks of a ``Taskset``; the random generators are seeded for each task."""

    def __init__(self, tasks: Any, name: str) -> None:  # noqa: ANN401
        if not isinstance(tasks, _learn2learn().data.Taskset):
            raise UserError(
                f"{name}: own_tasks needs a learn2learn Taskset, but got a {type(tasks).__name__}: give one, or leave "
                "out own_tasks."
            )
        if tasks.num_tasks != -1:
            raise UserError(
                f"{name}: its {tasks.num_tasks} tasks would be counted several times, and intervals would be too "
                "narrow: create the Taskset with num_tasks=-1."
            )
        self.tasks, self.name = tasks, name
        self._check_classes()

    def _check_classes(self) -> None:
        # the first transform draws from a data set of its own, which may have classes that the split does not have
        transforms = self.tasks.task_transforms
        first = next(iter(transforms), None) if not callable(transforms) else None
        places = ((first, "filter_labels"), (first, "labels"), (getattr(first, "dataset", None), "labels"))
        drawn = set(next(filter(None, (getattr(*place, None) for place in places)), ()))
        if outside := drawn - set(self.tasks.dataset.labels):
            raise UserError(
                f"{self.name}: its {type(first).__name__} draws from {len(drawn)} classes, but {len(outside)} of them "
                "are not in the split's data set, so splits would share classes: leave out own_tasks, or create the "
                "transforms with the data set of the Taskset."
            )

    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        tasks = [self._task(key, num_shots, num_queries) for key in np.split(keys, len(keys))]
        _check_shapes([task.support_x[0, 0] for task in tasks], self.name)
        return Episode(*(torch.cat(part).to(device) for part in list(zip(*tasks, strict=True))[:4]))

    def _task(self, key: Bits, num_shots: int, num_queries: int) -> Any:  # noqa: ANN401
        problem, remedy = f"{self.name}: its transforms cannot draw a task", "request fewer classes or samples"
        with explained(problem, remedy, ValueError), _seeded(int(key[0])):
            description = self.tasks.sample_task_description()  # not tasks[index], which would store every task
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
        x, y = x[order], y[order]
        first = np.tril(y[:, None] == y).sum(1) <= num_shots  # the first samples of each class
        support, query = ((x[part][None], torch.from_numpy(y[part])[None]) for part in (first, ~first))
        return Episode(*support, *query)


def _check_shapes(samples: list[Tensor], name: str) -> None:
    shapes = {tuple(sample.shape) for sample in samples}
    if len(shapes) > 1:
        raise UserError(
            f"{name}: samples have different shapes, {sorted(shapes)[:2]}: give the data set a transform that resizes "
            "them."
        )


def _as_tensor(sample: object, where: str) -> Tensor:
    # float32; bytes and PIL images in [0, 1]
    sample = torch.from_numpy(ImageLook(None, None)(sample)) if isinstance(sample, Image.Image) else sample
    sample = torch.from_numpy(sample) if isinstance(sample, np.ndarray) else sample
    if not isinstance(sample, Tensor):
        raise UserError(
            f"{where} is a {type(sample).__name__}, but must be a tensor, an array or a PIL image: give the data set a "
            "transform such as torchvision's ToTensor."
        )
    return sample.float() / 255 if sample.dtype == torch.uint8 else sample.float()


def _learn2learn() -> ModuleType:
    remedy = (
        "install the extra, pip install 'metatransfer[learn2learn]', or on Python 3.11 and later run "
        "tools/build_learn2learn.py --install from the project's sources"
    )
    with explained("learn2learn cannot be imported", remedy, ImportError):
        import learn2learn
    return learn2learn  # type: ignore[no-any-return]


def _benchmark(name: str, root: str, seed: int) -> dict[str, Any]:
    _learn2learn()
    from learn2learn.vision.benchmarks import get_tasksets

    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        # without it mini-ImageNet would be in 0 .. 255; the other benchmarks are always in [0, 1]
        with _seeded(seed):
            tasksets = get_tasksets(name, root=root, data_augmentation="normalize")
    except Exception as error:  # each loader raises errors of its own
        raise UserError(
            f"learn2learn cannot load its benchmark '{name}' from '{root}' ({type(error).__name__}: "
            f"{shorten(str(error), 120)}): put {_FILES[name]} there."
        ) from error
    return dict(zip(SPLITS, tasksets, strict=True))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of Python, NumPy and torch, and restores them at the end."""
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would also seed the GPUs
        yield
