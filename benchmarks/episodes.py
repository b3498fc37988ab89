"""How fast episodes are served, beside learn2learn, torchmeta's way of collating, and easyfsl.

    python benchmarks/episodes.py ROOT            ROOT holds omniglot-py

Work: meta-batches of 32 tasks, 5-way 1-shot with 15 queries per class, of the 1028 training characters of Omniglot,
ready as float tensors (32, S, 1, 28, 28) in [0, 1], by one process. Ours is the data module on the PNG files. Each peer
is given the same PNG files, as its users do, and also, which is the most favourable that it can get, all images in
memory as float tensors. First each peer's task is compared with what ours reads for the same samples; then all take
turns, and medians over the rounds are reported. On one thread tasks are counted per second of CPU, which others on the
machine hardly change; on two per second of the clock, which means something on an idle machine only. Needs learn2learn
(tools/build_learn2learn.py) and easyfsl.

Then: JPEG folders against the bare decoding rate of the cores, the time and memory from the start to the first batch,
and the time per task against the number of classes. All figures go to results/episodes.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset
from torch.utils.data._utils.collate import default_collate

from metatransfer import Episodes, EpisodicDataModule, ImageFolder, Omniglot, Processing, Task, TensorSource
from metatransfer.callbacks.run.report import machine
from metatransfer.data import EpisodeSampler, EpisodeSize
from metatransfer.data.readers.image_look import ImageLook, as_sample, decode
from metatransfer.data.sampling.loader import BatchLoader

WAYS, SHOTS, QUERIES, TASKS = 5, 1, 15, 32
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class FromFiles(Dataset):
    """What a user of the peers has who gives them the folder: a picture is opened and resized whenever it is drawn."""

    def __init__(self, files: list[Path], labels: list[int], look: ImageLook) -> None:
        self.files, self.labels, self.look = files, labels, look

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return as_sample(Image.open(self.files[index]), self.look), self.labels[index]

    def get_labels(self) -> list[int]:
        """What easyfsl asks for."""
        return self.labels


class InMemory(Dataset):
    """The best that a peer can be given: float images and their labels."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def get_labels(self) -> list[int]:
        """What easyfsl asks for."""
        return self.labels


# ---- ours


def ours(root: str) -> tuple[Callable[[], Batch], TensorSource]:
    data = EpisodicDataModule(
        Omniglot(root),
        Task(WAYS, SHOTS, QUERIES),
        episodes=Episodes(per_batch=TASKS, train=TASKS * 100_000),
        processing=Processing(rotations="none"),
    )
    batches = iter(data.train_dataloader())
    return lambda: next(batches), data.open("train").source


# ---- the peers


def stacked(tasks: list[Batch]) -> Batch:
    return tuple(torch.stack(part) for part in zip(*tasks, strict=True))  # type: ignore[return-value]


def with_learn2learn(data: InMemory) -> tuple[Callable[[], Batch], Callable[[], tuple[list[int], Tensor, Tensor]]]:
    """Its fused sampler and the usual split of a task by position, as in its own examples."""
    import learn2learn as l2l

    labels: dict[int, list[int]] = {}
    for index, label in enumerate(data.labels):
        labels.setdefault(label, []).append(index)
    meta = l2l.data.MetaDataset(data, labels_to_indices=labels)
    transforms = l2l.data.transforms
    tasks = l2l.data.Taskset(
        meta,
        [
            transforms.FusedNWaysKShots(meta, n=WAYS, k=SHOTS + QUERIES),
            transforms.LoadData(meta),
            transforms.RemapLabels(meta),
            transforms.ConsecutiveLabels(meta),
        ],
    )
    support = np.zeros(WAYS * (SHOTS + QUERIES), dtype=bool)
    support[np.arange(WAYS) * (SHOTS + QUERIES)] = True
    chosen, others = torch.from_numpy(support), torch.from_numpy(~support)

    def one() -> Batch:
        x, y = tasks.sample()
        return x[chosen], y[chosen], x[others], y[others]

    def check() -> tuple[list[int], Tensor, Tensor]:
        description = tasks.sample_task_description()
        return [part.index for part in description], *tasks.get_task(description)

    return lambda: stacked([one() for _ in range(TASKS)]), check


def with_easyfsl(data: InMemory) -> tuple[Callable[[], Batch], Callable[[], tuple[list[int], Tensor, Tensor]]]:
    from easyfsl.samplers import TaskSampler

    # it passes an argument that torch's Sampler no longer takes
    with mock.patch.object(Sampler, "__init__", return_value=None):
        sampler = TaskSampler(data, WAYS, SHOTS, QUERIES, 10**9)  # type: ignore[arg-type]
    tasks = iter(DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn))  # type: ignore[arg-type]

    def check() -> tuple[list[int], Tensor, Tensor]:
        indices = next(iter(sampler))
        support, support_y, query, query_y, _ = sampler.episodic_collate_fn([data[index] for index in indices])
        order = np.arange(len(indices)).reshape(WAYS, -1)
        places = [*order[:, :SHOTS].flatten(), *order[:, SHOTS:].flatten()]
        return [indices[place] for place in places], torch.cat([support, query]), torch.cat([support_y, query_y])

    return lambda: stacked([next(tasks)[:4] for _ in range(TASKS)]), check


class OfClass(Dataset):
    """Torchmeta's data set of one class: its label goes through the task's numbering whenever a sample is read."""

    def __init__(self, data: Dataset, members: list[int], label: int) -> None:
        self.data, self.members, self.label = data, members, label
        self.number: Callable[[int], int] = int

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data[self.members[index]][0], self.number(self.label)


class Categorical:
    """Torchmeta's: classes are numbered in the order in which they are first read, by a random permutation."""

    def __init__(self) -> None:
        self.labels, self.classes = torch.randperm(WAYS).tolist(), {}

    def __call__(self, label: int) -> int:
        """The number of a class."""
        if label not in self.classes:
            self.classes[label] = self.labels[len(self.classes)]
        return self.classes[label]


class Combinations(Dataset):
    """Torchmeta's CombinationMetaDataset with its ClassSplitter: a tuple of classes gives a task in two parts."""

    def __init__(self, data: Dataset, members: dict[int, list[int]]) -> None:
        self.data, self.members = data, members
        self.shuffler = np.random.RandomState(0)

    def __getitem__(self, chosen: tuple[int, ...]) -> dict[str, Subset]:
        classes = [OfClass(self.data, self.members[label], label) for label in chosen]
        whole, number, start = ConcatDataset(classes), Categorical(), 0
        parts: dict[str, list[int]] = {"support": [], "query": []}
        for label, one in zip(chosen, classes, strict=True):
            one.number = number
            order = np.random.RandomState((hash(chosen) + label) % 2**32).permutation(len(one))
            taken = 0
            for name, count in (("support", SHOTS), ("query", QUERIES)):
                places = order[taken : taken + count]
                self.shuffler.shuffle(places)
                parts[name].extend(places + start)
                taken += count
            start += len(one)
        return {name: Subset(whole, places) for name, places in parts.items()}


def as_torchmeta(data: InMemory) -> tuple[Callable[[], Batch], Callable[[], tuple[list[int], Tensor, Tensor]]]:
    """Torchmeta 1.8 wants a torch before 1.10; this is the path of a batch through its BatchMetaDataLoader.

    A task is a concatenation of one data set for each class, divided at random in each class, read item by item and
    collated part by part, then over tasks.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(data.labels):
        members.setdefault(label, []).append(index)
    tasks = Combinations(data, members)

    def chosen() -> Iterator[tuple[int, ...]]:
        while True:
            yield tuple(random.sample(range(len(members)), WAYS))

    def collate(batch: list[dict[str, Subset]]) -> dict[str, list[Tensor]]:
        read = [
            {name: default_collate([part[index] for index in range(len(part))]) for name, part in task.items()}
            for task in batch
        ]
        return default_collate(read)

    batches = iter(DataLoader(tasks, TASKS, sampler=chosen(), collate_fn=collate))  # type: ignore[arg-type]

    def batch() -> Batch:
        served = next(batches)
        return (*served["support"], *served["query"])

    def check() -> tuple[list[int], Tensor, Tensor]:
        task = tasks[next(chosen())]
        indices = []
        for part in task.values():
            for place in part.indices:
                owner = int(np.searchsorted(part.dataset.cumulative_sizes, place, side="right"))
                first = part.dataset.cumulative_sizes[owner] - len(part.dataset.datasets[owner])
                indices.append(part.dataset.datasets[owner].members[place - first])
        read = [part[index] for part in task.values() for index in range(len(part))]
        return indices, *default_collate(read)

    return batch, check


# ---- comparison


def verify(name: str, check: Callable[[], tuple[list[int], Tensor, Tensor]], source: TensorSource) -> None:
    """A peer's task has the pixels that ours reads for the same samples, and labels that tell the same classes apart.

    Raises:
        SystemExit: it has not.
    """
    for _ in range(20):
        indices, x, y = check()
        same = source.read(torch.tensor(indices), torch.device("cpu")).equal(x)
        truth = torch.from_numpy(source.labels[indices])
        if not same or not torch.equal(y[:, None] == y, truth[:, None] == truth):
            raise SystemExit(f"{name}: a task is not what ours is for the same samples")
        if x.dtype != torch.float32 or not 0 <= x.min() <= x.max() <= 1:
            raise SystemExit(f"{name}: its samples are {x.dtype} in {x.min()} .. {x.max()}, ours float32 in 0 .. 1")


def serve(root: str, rounds: int) -> dict[str, object]:
    nothing, source = ours(root)
    data = InMemory(source.read(torch.arange(len(source)), torch.device("cpu")), source.labels.tolist())
    folders = [f"omniglot-py/images_*/{name}/*.png" for name in source.class_names]
    files = [file for folder in folders for file in sorted(Path(root).glob(folder))]
    opened = FromFiles(files, data.labels, Omniglot(root).reader.look)
    systems: dict[str, tuple[Callable[[], Batch], int]] = {"metatransfer": (nothing, 40)}
    for name, make in (("learn2learn", with_learn2learn), ("torchmeta's way", as_torchmeta), ("easyfsl", with_easyfsl)):
        for given, where, count in ((data, "in memory", 2), (opened, "from files", 1)):
            batch, check = make(given)  # type: ignore[arg-type]
            verify(name, check, source)
            systems[f"{name}, {where}"] = (batch, count)
    found: dict[str, object] = {}
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        # two wait for each other in every call: where other processes run, that costs milliseconds
        torch.set_num_threads(threads)
        rates: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(rounds + 1):
            for name, (batch, count) in systems.items():
                start = clock()
                for _ in range(count):
                    support_x, _, query_x, _ = batch()
                    assert support_x.shape == (TASKS, WAYS * SHOTS, 1, 28, 28)
                    assert query_x.shape == (TASKS, WAYS * QUERIES, 1, 28, 28)
                    assert query_x.dtype == torch.float32
                rates[name].append(count * TASKS / (clock() - start))
        medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
        ratios = {name: medians["metatransfer"] / value for name, value in medians.items()}
        found[f"{threads} threads"] = {"load": round(os.getloadavg()[0], 2)} | {
            name: {"tasks_per_second": round(value, 1), "ours_is_times": round(ratios[name], 1)}
            for name, value in medians.items()
        }
        print(f"{threads} threads: " + ", ".join(f"{n} {v:,.0f} tasks/s ({ratios[n]:.1f})" for n, v in medians.items()))
    return found


# ---- JPEG folders


def photographs(root: Path, classes: int = 15, each: int = 24) -> None:
    """Pictures of 500x375 pixels with the spectrum of natural ones, saved as cameras do."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:375, :251]
    amplitude = 1 / np.hypot(np.minimum(y, 375 - y), x + 1)
    for kind in range(classes):
        folder = root / f"class {kind}"
        folder.mkdir(parents=True)
        for number in range(each):
            noise = generator.normal(size=(3, *amplitude.shape)) + 1j * generator.normal(size=(3, *amplitude.shape))
            waves = np.fft.irfft2(noise * amplitude, s=(375, 500))
            waves = 127 + 60 * waves / waves.std()
            picture = Image.fromarray(waves.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
            picture.save(folder / f"{number}.jpg", quality=90)


def _decoded(argument: tuple) -> int:
    file, look = argument
    return int(decode(file, look).size)


def jpegs(rounds: int, workers: int = 2) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder) / "photos")
        images = ImageFolder(str(Path(folder) / "photos"), memory_limit=1)
        data = EpisodicDataModule(images, Task(5, 1, 15), episodes=Episodes(per_batch=2, train=40), num_workers=workers)
        data.setup("fit")
        source = data.open("train").source
        batches = list(data.open("train").draw(np.arange(40)))
        drawn = [int(index) for one in batches for part in (one.support, one.query) for index in part.flatten()]
        files = source.base  # of which the training has some
        work = [(files.file(int(source.indices[index])), files.look) for index in drawn]
        ratios, bare, served = [], [], []
        torch.set_num_threads(1)
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for _ in range(rounds):
                start = time.perf_counter()
                pool.map(_decoded, work, chunksize=80)
                bare.append(len(work) / (time.perf_counter() - start))
                start = time.perf_counter()
                count = sum(batch.support_y.numel() + batch.query_y.numel() for batch in data.train_dataloader())
                served.append(count / (time.perf_counter() - start))
                ratios.append(served[-1] / bare[-1])
        found = {"bare_images_per_second": bare, "served_images_per_second": served, "ratio": ratios}
        medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
        print(f"JPEG: {medians}")
        return medians | {"workers": workers}


# ---- start and memory


def first_batch(root: str) -> None:
    """In a process of its own: seconds and memory from the imports to the first meta-batch of full Omniglot."""
    before = _resident()
    start = time.perf_counter()
    data = EpisodicDataModule(
        Omniglot(root),
        task=Task(num_ways=WAYS, num_shots=SHOTS, num_queries=QUERIES),
        episodes=Episodes(per_batch=TASKS),
    )
    data.setup("fit")
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - start
    held = sum(data.open(split).source.base.data.nbytes for split in ("train", "val"))
    # not ru_maxrss, which starts at what the parent had
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))  # type: ignore[union-attr]
    above = (peak - before - held) / 2**20
    print(json.dumps({"seconds": seconds, "megabytes_above_the_tensors": above, "megabytes_of_tensors": held / 2**20}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(root: str, rounds: int) -> dict[str, float]:
    found = []
    for _ in range(rounds + 1):  # the first one warms the cache
        command = [sys.executable, __file__, root, "--first-batch"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
    medians = {name: round(statistics.median(one[name] for one in found[1:]), 2) for name in found[0]}
    print(f"first batch: {medians}")
    return medians


# ---- growth


def growth(rounds: int) -> dict[str, float]:
    """Microseconds of CPU per task against the number of classes, on one thread."""
    found: dict[str, list[float]] = {}
    torch.set_num_threads(1)
    loaders: dict[str, Iterator] = {}
    for classes in (100, 1000, 5000, 20_000):
        images = torch.randint(0, 256, (classes * 20, 1, 28, 28), dtype=torch.uint8)
        source = TensorSource(images, np.arange(classes).repeat(20), [str(i) for i in range(classes)], "noise")
        sampler = EpisodeSampler(source, "train", 0, EpisodeSize(WAYS, SHOTS, QUERIES))
        loaders[str(classes)] = iter(BatchLoader(sampler, count=TASKS * 100_000, batch_size=TASKS))
    for _ in range(rounds + 1):
        for classes, batches in loaders.items():
            begin = time.process_time()
            for _ in range(20):
                next(batches)
            found.setdefault(classes, []).append((time.process_time() - begin) / 20 / TASKS * 1e6)
    medians = {classes: round(statistics.median(values[1:]), 1) for classes, values in found.items()}
    print("microseconds per task by number of classes: " + str(medians))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--first-batch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first_batch:
        first_batch(arguments.root)
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    results = {
        "machine": machine(torch.device("cpu"))
        | {name: version(name) for name in ("torch", "numpy", "pillow", "learn2learn", "easyfsl")}
        | {"python": platform.python_version(), "load": round(os.getloadavg()[0], 2)},
        "start": start(arguments.root, arguments.rounds),
        "serving": serve(arguments.root, arguments.rounds),
        "growth_microseconds_per_task": growth(arguments.rounds),
        "jpeg": jpegs(arguments.rounds),
    }
    path = Path(__file__).resolve().parent / "results" / "episodes.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written to results/{path.name}")


if __name__ == "__main__":
    main()
