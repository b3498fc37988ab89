"""Subspace alignment and CORAL on two large domains, beside what one writes by hand with numpy and scikit-learn.

python benchmarks/shallow_adaptation.py --threads 1

Fit to both domains, then transform both. The peers are the textbook's: two fits of scikit-learn's PCA by singular
value decomposition and their alignment; and scipy's general powers of two covariance matrices. What both give must be
the same before their times are told. Runs alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from metatransfer.adapters.domain import CorrelationAlignment, DomainAdapter, SubspaceAlignment
from metatransfer.callbacks.run.report import machine

Array = NDArray[np.float64]
Mapped = tuple[Array, Array]
DIRECTIONS = 20


def domains(samples: int, features: int) -> tuple[Array, Array]:
    """Two domains of many correlated features, centred; the variance of their directions falls as spectra do."""
    generator = np.random.default_rng(0)
    scales = 1 / np.sqrt(1 + np.arange(features))
    found = []
    for _ in range(2):
        turn = np.linalg.qr(generator.normal(size=(features, features)))[0]
        x = (generator.normal(size=(samples, features)) * scales) @ turn
        found.append(x - x.mean(0))
    return found[0], found[1]


def adapted(adapter: DomainAdapter, source: Array, target: Array) -> Mapped:
    return adapter.fit_transform(source, target=target), adapter.transform(target)


def textbook_alignment(source: Array, target: Array) -> Mapped:
    mine, other = (PCA(DIRECTIONS, svd_solver="full").fit(x).components_.T for x in (source, target))
    return source @ mine @ (mine.T @ other), target @ other


def textbook_coral(source: Array, target: Array) -> Mapped:
    mine, other = (np.cov(x, rowvar=False) + np.eye(x.shape[1]) for x in (source, target))
    whitened = source @ linalg.fractional_matrix_power(mine, -0.5)
    return whitened @ linalg.fractional_matrix_power(other, 0.5), target


PAIRS: dict[str, tuple[Callable[[Array, Array], Mapped], Callable[[Array, Array], Mapped]]] = {
    "SubspaceAlignment": (lambda s, t: adapted(SubspaceAlignment(DIRECTIONS), s, t), textbook_alignment),
    "CorrelationAlignment": (lambda s, t: adapted(CorrelationAlignment(1.0), s, t), textbook_coral),
}


def difference(one: Mapped, other: Mapped) -> float:
    """The largest difference of inner products of mapped samples, source with target: directions may be reversed."""
    products = [mine[:200] @ theirs[:200].T for mine, theirs in (one, other)]
    return float(np.abs(products[0] - products[1]).max() / np.abs(products[1]).max())


def timed(function: Callable[[Array, Array], Mapped], source: Array, target: Array) -> tuple[float, Mapped]:
    start = time.perf_counter()
    found = function(source, target)
    return time.perf_counter() - start, found


def main() -> None:
    """Measures, prints, writes results/shallow_adaptation.json.

    Raises:
        SystemExit: an adapter and its textbook form differ.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10_000, help="of each domain")
    parser.add_argument("--features", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # told by machine()
    source, target = domains(options.samples, options.features)
    rows = {}
    with threadpool_limits(options.threads):
        for name, (ours, textbook) in PAIRS.items():
            away = difference(ours(source, target), textbook(source, target))
            if away > 1e-8:
                raise SystemExit(f"{name} and its textbook form differ by {away:.1e}: nothing is timed")
            times: dict[str, list[float]] = {"metatransfer": [], "textbook": []}
            for _ in range(options.rounds):
                times["metatransfer"].append(timed(ours, source, target)[0])
                times["textbook"].append(timed(textbook, source, target)[0])
            middle = {which: statistics.median(values) for which, values in times.items()}
            ratio = middle["textbook"] / middle["metatransfer"]
            rows[name] = {"seconds": times, "median_s": middle, "ratio": ratio, "difference": away}
            print(f"{name:21} {middle['metatransfer']:.2f} s, textbook {middle['textbook']:.2f} s: {ratio:.1f} times; "
                  f"the same within {away:.1e}")  # fmt: skip
    content = {
        "domains": f"{options.samples} x {options.features} source and target, fit and transform of both",
        "methods": rows,
        "machine": machine(torch.device("cpu")),
    }
    (Path(__file__).parent / "results" / "shallow_adaptation.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
