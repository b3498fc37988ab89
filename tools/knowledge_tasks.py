"""The tasks that tools/build_knowledge.py measures methods on, all from data that need no download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_blobs,
    make_classification,
    make_gaussian_quantiles,
    make_moons,
)
from torch import Tensor

from metatransfer.data.collections import Digits, Glyphs, TypesetDigits
from metatransfer.data.sources import Collection, Source, read_samples

Array = NDArray[np.float32]
BASE_SHAPES = ((2, 1), (2, 5), (5, 1), (5, 5), (5, 10))
IMAGE_SHAPES = ((2, 3), (2, 20), (10, 1), (10, 5), (10, 20))
TABLE_SHOTS = (2, 5, 15, 40)
SKEWED = (1, 1, 1, 2, 2, 3, 5, 8, 12, 20)
SCRIPTS = ("Ethiopic", "Thai", "Ugaritic")


@dataclass(frozen=True)
class Samples:
    """Samples ``(N, *shape)``, images in [0, 1], with their labels ``(N,)``."""

    x: Array
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A classification task with few labels.

    Attributes:
        collection: tasks of the same collection resemble each other, and are left out together.
        shape: classes and labels, in words.
        samples: that support sets and queries are drawn from.
        counts: labels of each class of a support set.
        draws: number of support sets.
        queries: of each class, at most.
        base: training samples of other classes, if there are some.
        standardised: whether columns are standardised with each support set, as for a table.
    """

    collection: str
    shape: str
    samples: Samples
    counts: tuple[int, ...]
    draws: int
    queries: int = 25
    base: str | None = None
    standardised: bool = False

    @property
    def name(self) -> str:
        """As it is shown as a known task."""
        return f"{self.collection}: {self.shape}"

    def draw(self, number: int) -> tuple[Samples, Samples]:
        """A support set and its queries, with labels from 0."""
        x, y = self.samples.x, self.samples.y
        rng = np.random.default_rng(number)
        classes = np.flatnonzero(np.bincount(y) > max(self.counts))
        support: list[NDArray[np.int64]] = []
        query: list[NDArray[np.int64]] = []
        for one, count in zip(rng.choice(classes, len(self.counts), replace=False), self.counts, strict=True):
            rows = rng.permutation(np.flatnonzero(y == one))
            support.append(rows[:count])
            query.append(rows[count : count + self.queries])
        known, asked = x[np.concatenate(support)], x[np.concatenate(query)]
        if self.standardised:
            spread = known.std(0)
            known, asked = ((part - known.mean(0)) / np.where(spread > 0, spread, 1) for part in (known, asked))
        return Samples(known, _numbered(support)), Samples(asked, _numbered(query))


def _numbered(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


@cache
def _all(collection: type[Collection], part: str) -> tuple[Samples, tuple[str, ...]]:
    source = collection().opened()[part]
    assert isinstance(source, Source)
    x = read_samples(source, torch.arange(len(source)), torch.device("cpu"))
    assert isinstance(x, Tensor)
    return Samples(x.numpy(), source.labels), source.class_names


# ---- changes of images


def noisy(x: Array) -> Array:
    """Strong pixel noise."""
    rng = np.random.default_rng(1)
    return np.clip(x + rng.normal(0, 0.5, x.shape), 0, 1).astype(np.float32)


def turned(x: Array) -> Array:
    """Each image turned by an angle of its own, from the whole circle."""
    angles = torch.from_numpy(np.random.default_rng(2).uniform(0, 2 * math.pi, len(x))).float()
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(len(x))
    moves = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(moves, [len(x), *x.shape[1:]], align_corners=False)
    found: Array = F.grid_sample(torch.from_numpy(x), grid, align_corners=False).numpy()
    return found


def inverted(x: Array) -> Array:
    """White ink on black paper, in another contrast, and a quarter of the resolution."""
    small = F.interpolate(torch.from_numpy(x), scale_factor=0.25, mode="area")
    found: Array = (0.9 - 0.6 * F.interpolate(small, size=x.shape[-2:], mode="bilinear")).numpy()
    return found


CHANGES = {"noisy": noisy, "turned": turned, "inverted": inverted}


# ---- data with training classes


def base_sets() -> dict[str, dict[str, Samples]]:
    """Samples of training and test classes, by name."""
    train, test = (_all(Glyphs, part)[0] for part in ("train", "test"))
    found = {"Glyphs": {"train": train, "test": test}}
    for name, change in (("noisy", noisy), ("turned", turned)):
        some = train.y < 400  # further classes would only cost time
        changed = {"train": Samples(change(train.x[some]), train.y[some]), "test": Samples(change(test.x), test.y)}
        found[f"{name} Glyphs"] = changed
    return found


def base_tasks(sets: dict[str, dict[str, Samples]]) -> Iterator[Task]:
    """New classes with few labels, where other classes have many."""
    for name, parts in sets.items():
        for ways, shots in BASE_SHAPES:
            draws = 12 if shots == 1 else 8 if ways == 2 else 5
            shape = f"new classes, {ways}-way {shots}-shot"
            yield Task(name, shape, parts["test"], (shots,) * ways, draws, 15, base=name)


# ---- data with the labelled classes only


def image_tasks() -> Iterator[Task]:
    """Digits and characters of a single script, with few labels."""
    sets = {"handwritten digits": _all(Digits, "all")[0], "typeset digits": _all(TypesetDigits, "test")[0]}
    for name, samples in list(sets.items()):
        changes = CHANGES if samples is sets["handwritten digits"] else {"noisy": noisy}
        sets |= {f"{change} {name}": Samples(by(samples.x), samples.y) for change, by in changes.items()}
    for name, samples in sets.items():
        for ways, shots in IMAGE_SHAPES:
            draws = 6 if ways * shots < 20 else 2 if ways * shots < 100 else 1
            yield Task(name, f"{ways} classes, {shots} labels each", samples, (shots,) * ways, draws)
        yield Task(name, "10 classes, 1 to 20 labels", samples, SKEWED, 2)
    test, names = _all(Glyphs, "test")
    scripts = np.array([name.rpartition(" ")[0] for name in names])[test.y]
    for script in SCRIPTS:
        rows = scripts == script
        samples = Samples(test.x[rows], np.unique(test.y[rows], return_inverse=True)[1])
        for ways, shots in ((5, 3), (20, 1), (20, 5)):
            shape = f"{ways} classes, {shots} labels each"
            yield Task(f"{script} script", shape, samples, (shots,) * ways, 2 if ways > 5 else 4, 10)


def tables() -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Tables by name: scikit-learn's own, and drawn ones of many kinds."""
    found = {
        load.__name__.removeprefix("load_"): load(return_X_y=True)
        for load in (load_iris, load_wine, load_breast_cancer, load_digits)
    }
    size: dict[str, int] = {"n_samples": 1500, "random_state": 0}
    found |= {
        "linear, 5 columns": make_classification(n_features=5, n_informative=5, n_redundant=0, **size),
        "linear, 60 columns of which 5 matter": make_classification(
            n_features=60, n_informative=5, n_redundant=0, **size
        ),
        "clusters, 4 classes, 10 columns": make_classification(
            n_features=10, n_informative=6, n_classes=4, n_clusters_per_class=3, class_sep=1.5, **size
        ),
        "clusters, 2 classes, 4 columns": make_classification(
            n_features=4, n_informative=4, n_redundant=0, n_clusters_per_class=4, class_sep=2.0, **size
        ),
        "balls, 8 classes, 20 columns": make_blobs(centers=8, n_features=20, cluster_std=6.0, **size),
        "shells, 3 classes, 3 columns": make_gaussian_quantiles(n_features=3, n_classes=3, **size),
        "shells, 2 classes, 10 columns": make_gaussian_quantiles(n_features=10, n_classes=2, **size),
        "moons": make_moons(noise=0.2, **size),
    }
    return found


def table_tasks() -> Iterator[Task]:
    """Rows of tables with few labels."""
    for name, (x, y) in tables().items():
        samples = Samples(x.astype(np.float32), y.astype(np.int64))
        for shots in TABLE_SHOTS:
            ways = len(np.unique(y))
            if np.bincount(y).min() > shots and ways * shots <= 400:
                shape = f"{ways} classes, {shots} labels each"
                draws = 8 if shots < 15 else 4
                yield Task(f"table {name}", shape, samples, (shots,) * ways, draws, 60, standardised=True)
