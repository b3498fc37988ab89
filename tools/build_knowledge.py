"""Measures classifiers on raw features over tasks of collections, ways and shots, and writes a knowledge file.

Tasks are drawn from Glyphs, from each of its scripts with enough classes, from data sets of scikit-learn, and from
any further paths. No network is trained: the file ranks classifiers of raw features only, and says so in their names.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from metatransfer.data.collections import Glyphs, open_path
from metatransfer.data.sources import Source, encoded, read_samples
from metatransfer.experiments.knowledge import Knowledge
from metatransfer.experiments.selector import StrategySelector
from metatransfer.functional.task_features import TaskFeatures, task_features

SHAPES = ((2, 1), (2, 5), (5, 1), (5, 5), (5, 20), (10, 5), (10, 20))
QUERIES = 10  # per class and episode, at most
SMOOTH = 1e-3
METHODS: dict[str, ClassifierMixin] = {
    "raw 1-NN": KNeighborsClassifier(1),
    "raw 1-NN, cosine": make_pipeline(Normalizer(), KNeighborsClassifier(1)),
    "raw class means": NearestCentroid(),
    "raw class means, cosine": make_pipeline(Normalizer(), NearestCentroid()),
    "raw ridge": make_pipeline(StandardScaler(), RidgeClassifier()),
    "raw logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
    "raw SVM, linear": make_pipeline(StandardScaler(), SVC(kernel="linear")),
    "raw SVM, Gaussian": make_pipeline(StandardScaler(), SVC()),
    "raw LDA, shrinkage": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5),
    "raw naive Bayes": GaussianNB(var_smoothing=SMOOTH),
    "raw tree": DecisionTreeClassifier(random_state=0),
    "raw random forest": RandomForestClassifier(50, random_state=0),
    "raw extra trees": ExtraTreesClassifier(50, random_state=0),
}


def samples(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All samples as vectors, and their labels."""
    x = read_samples(source, torch.arange(len(source)), torch.device("cpu"))
    if not isinstance(x, torch.Tensor):
        raise SystemExit(f"{source.name} holds texts: give their embeddings as arrays")
    return x.flatten(1).numpy().astype(np.float64), source.labels


def sets(paths: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, samples and labels of each data set."""
    glyphs = Glyphs().opened()["train"]
    assert isinstance(glyphs, Source)
    x, y = samples(glyphs)
    yield "Glyphs", x, y
    groups = np.array([name.rpartition(" ")[0] for name in glyphs.class_names])[y]
    for group in np.unique(groups):
        yield f"Glyphs {group}", x[groups == group], y[groups == group]
    for load in (load_digits, load_iris, load_wine, load_breast_cancer):
        yield load.__name__.removeprefix("load_"), *load(return_X_y=True)
    for path in paths:
        collection = open_path(path)
        parts = collection.opened()
        source = parts["train" if "train" in parts else "all"]
        assert isinstance(source, Source)
        yield path, *samples(encoded(source, collection.encoder(source)))


def episode(y: np.ndarray, ways: int, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Support and query rows of random classes, ``None`` if too few classes have a query sample."""
    classes, counts = np.unique(y, return_counts=True)
    classes = classes[counts > shots]
    if len(classes) < ways:
        return None
    rows = [rng.permutation(np.flatnonzero(y == one)) for one in rng.choice(classes, ways, replace=False)]
    return np.concatenate([one[:shots] for one in rows]), np.concatenate([one[shots : shots + QUERIES] for one in rows])


def measure(x: np.ndarray, y: np.ndarray, ways: int, shots: int, episodes: int) -> list[float] | None:
    """Mean accuracy of each method over the same episodes."""
    rng, found = np.random.default_rng(0), []
    for _ in range(episodes):
        drawn = episode(y, ways, shots, rng)
        if drawn is None:
            return None
        support, query = drawn
        found.append([model.fit(x[support], y[support]).score(x[query], y[query]) for model in METHODS.values()])
    means: list[float] = np.mean(found, 0).tolist()
    return means


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--data", nargs="*", default=[], help="further paths")
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # classifiers of one sample per class
    names, values, scores = [], [], []
    for name, x, y in sets(options.data):
        for ways, shots in SHAPES:
            row = measure(x, y, ways, shots, options.episodes)
            if row is not None:
                names.append(f"{name}, {ways}-way {shots}-shot")
                values.append(task_features(x, y, ways=ways, shots=shots))
                scores.append(row)
                print(names[-1], dict(zip(METHODS, np.round(row, 3), strict=True)), flush=True)
    table = Knowledge(tuple(names), TaskFeatures._fields, tuple(METHODS), np.array(values), np.array(scores))
    StrategySelector().fit(table).save(options.output)


if __name__ == "__main__":
    main()
