"""An in-context learner trained on synthetic tables, on real ones with few labelled rows, beside what a user would fit.

lightning fit --config configs/tabular/in_context.yaml
python benchmarks/tabular_in_context.py --checkpoint RUN/checkpoints/best.ckpt --heart heart/ --german german.data

Tables of scikit-learn, and from files: UCI heart disease (processed.cleveland.data, with a header) and German credit
(german.data). Categories are numbered, missing values are replaced by the median of the labelled rows, and all methods
get the same numbers.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metatransfer import InContextModule

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]
PEERS: Mapping[str, Callable[[int], ClassifierMixin]] = {
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "random forest": lambda seed: RandomForestClassifier(100, random_state=seed),
    "1-NN": lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier(1)),
    "nearest class mean": lambda seed: make_pipeline(StandardScaler(), NearestCentroid()),
}


def pooled_digits() -> Rows:
    """Handwritten digits of 4 x 4 pixels."""
    x, y = datasets.load_digits(return_X_y=True)
    return x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16), y


def file_table(path: Path, header: bool, delimiter: str, classes: Callable[[str], int]) -> Rows:
    """A table with the class in its last column; words are numbered in their alphabetical order."""
    with path.open() as opened:
        rows = [row for row in csv.reader(opened, delimiter=delimiter) if row][int(header) :]
    columns = []
    for column in list(zip(*rows, strict=True))[:-1]:
        words = sorted({cell for cell in column if not _is_number(cell) and cell != "?"})
        columns.append([np.nan if one == "?" else words.index(one) if one in words else float(one) for one in column])
    return np.array(columns).T, np.array([classes(row[-1]) for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def score(classifier: ClassifierMixin, train: Rows, test: Rows) -> tuple[float, float]:
    """Accuracy and log loss; NaN without probabilities."""
    fitted = classifier.fit(*train)
    right = float((fitted.predict(test[0]) == test[1]).mean())
    if not hasattr(fitted, "predict_proba"):
        return right, float("nan")
    return right, float(log_loss(test[1], fitted.predict_proba(test[0]), labels=fitted.classes_))


def in_context(module: InContextModule, train: Rows, test: Rows) -> tuple[float, float]:
    """Accuracy and log loss of the trained network, which is not trained further."""
    predictor = module.adapt(*train)
    chances = predictor.predict_proba(test[0]).double().numpy()
    right = float((np.array(predictor.classes)[chances.argmax(1)] == test[1]).mean())
    return right, float(log_loss(test[1], chances / chances.sum(1, keepdims=True), labels=predictor.classes))


def measured(module: InContextModule, table: Rows, labelled: int, splits: int) -> dict[str, dict[str, float]]:
    """Mean scores over random splits, stratified by class; the interval is of the difference to the network."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("in-context learner", *PEERS)}
    for seed in range(splits):
        x, rest_x, y, rest_y = train_test_split(*table, train_size=labelled, random_state=seed, stratify=table[1])
        filled = np.nan_to_num(np.nanmedian(x, axis=0))
        x, rest_x = (np.where(np.isnan(one), filled, one) for one in (x, rest_x))
        for name, scores in found.items():
            start = time.perf_counter()
            if name in PEERS:
                own = score(PEERS[name](seed), (x, y), (rest_x, rest_y))
            else:
                own = in_context(module, (x, y), (rest_x, rest_y))
            scores.append((*own, time.perf_counter() - start))
    first = np.array(found["in-context learner"])[:, 0]
    return {name: _row(np.array(scores), first) for name, scores in found.items()}


def _row(scores: NDArray[np.float64], first: NDArray[np.float64]) -> dict[str, float]:
    accuracy, loss, seconds = scores.mean(0)
    difference = 100 * (first - scores[:, 0])
    half = 1.96 * statistics.stdev(difference) / len(difference) ** 0.5 if difference.any() else 0.0
    row = {"accuracy": 100 * accuracy, "network_minus_it": difference.mean(), "ci95": half, "seconds": seconds}
    return row | ({} if np.isnan(loss) else {"log_loss": loss})


def main() -> None:
    """Measures, prints, writes results/tabular_in_context.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--heart", type=Path, help="folder of processed.cleveland.data")
    parser.add_argument("--german", type=Path, help="german.data")
    parser.add_argument("--labelled", type=int, default=64)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    module = InContextModule.load_from_checkpoint(options.checkpoint, map_location="cpu", weights_only=True)
    loaders = (datasets.load_breast_cancer, datasets.load_wine, datasets.load_iris)
    tables = {load.__name__.removeprefix("load_"): load(return_X_y=True) for load in loaders}
    tables["digits, 4 x 4 pixels"] = pooled_digits()
    if options.heart:
        path = options.heart / "processed.cleveland.data"
        tables["heart disease"] = file_table(path, True, ",", lambda cell: int(float(cell) > 0))
    if options.german:
        tables["german credit"] = file_table(options.german, False, "\t", int)
    content: dict[str, object] = {"labelled_rows": options.labelled, "splits": options.splits}
    for name, table in tables.items():
        rows = measured(module, table, options.labelled, options.splits)
        content[name] = {"rows": len(table[1]), "columns": table[0].shape[1], "methods": rows}
        print(f"{name}: " + ", ".join(f"{method} {row['accuracy']:.1f}" for method, row in rows.items()), flush=True)
    (Path(__file__).parent / "results" / "tabular_in_context.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
