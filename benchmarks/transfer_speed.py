"""Transferability scores and CKA at 10,000 x 2,048 features beside textbook forms; equal values first.

Both run on the same number of threads. Seconds are wall time and processor time, the best of some repeats: on a machine
with other jobs the second is the fairer one.

python benchmarks/transfer_speed.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transferability import processor

from metatransfer.functional import h_score, leep, linear_cka, log_me, nce

CLASSES, SOURCE_CLASSES = 10, 1000
Array = np.ndarray


def textbook_log_me(f: Array, y: Array) -> float:
    """A singular value decomposition, then fixed-point iteration for each class, as in the authors' code."""
    n, d = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma, evidences = s**2, []
    for label in np.unique(y):
        target = (y == label).astype(np.float64)
        x2 = (u.T @ target) ** 2
        rest = (target**2).sum() - x2.sum()
        alpha, beta = 1.0, 1.0
        for _ in range(100):
            t = alpha / beta
            gamma = (sigma / (sigma + t)).sum()
            m2 = (sigma * x2 / (t + sigma) ** 2).sum()
            errors = (x2 / (1 + sigma / t) ** 2).sum() + rest
            alpha, beta = gamma / m2, (n - gamma) / errors
            if abs(alpha / beta - t) <= 1e-9 * t:
                break
        evidence = d * np.log(alpha) + n * np.log(beta) - np.log(alpha + beta * sigma).sum() - n * np.log(2 * np.pi)
        evidences.append((evidence - beta * errors - alpha * m2) / 2 / n)
    return float(np.mean(evidences))


def textbook_h_score(f: Array, y: Array) -> float:
    """The trace of pinv(cov(f)) cov(class means), as in the authors' code."""
    means = np.zeros_like(f)
    for label in np.unique(y):
        means[y == label] = f[y == label].mean(0)
    return float(np.trace(np.linalg.pinv(np.cov(f, rowvar=False), rcond=1e-15) @ np.cov(means, rowvar=False)))


def textbook_leep(theta: Array, y: Array) -> float:
    """A mask for each class."""
    joint = np.stack([theta[y == label].sum(0) for label in range(y.max() + 1)]) / len(y)
    given = (joint / joint.sum(0)).T
    return float(np.log([(theta[i] @ given)[label] for i, label in enumerate(y)]).mean())


def textbook_nce(z: Array, y: Array) -> float:
    """Masks for each pair of classes."""
    total = 0.0
    for source in np.unique(z):
        share = (z == source).mean()
        for label in np.unique(y):
            joint = ((z == source) & (y == label)).mean()
            total += joint * np.log(joint / share) if joint else 0.0
    return total


def textbook_cka(x: Array, y: Array) -> float:
    """Gram matrices of samples by samples, centred."""
    grams = []
    for one in (x, y):
        gram = one @ one.T
        gram -= gram.mean(0, keepdims=True)
        grams.append(gram - gram.mean(1, keepdims=True))
    k, other = grams
    return float((k * other).sum() / np.linalg.norm(k) / np.linalg.norm(other))


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """The value, and the best wall and processor seconds."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, used = time.perf_counter(), time.process_time()
        value = call()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - used)
    return float(value), min(walls), min(processors)  # type: ignore[arg-type]


def main() -> None:
    """Measures, prints, writes results/transfer_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="set OMP_NUM_THREADS to the same for the textbook forms")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (10_000,), generator=make)
    x = (torch.randn(10_000, 2048, generator=make) + torch.randn(CLASSES, 2048, generator=make)[y] / 4).relu()
    other = (x[:, torch.randperm(2048, generator=make)] + torch.randn(10_000, 2048, generator=make)).relu()
    theta = (3 * torch.randn(10_000, SOURCE_CLASSES, generator=make)).softmax(-1)
    z, double, labels = theta.argmax(-1), x.double().numpy(), y.numpy()
    pairs = {
        "LogME": (lambda: log_me(x, y), lambda: textbook_log_me(double, labels)),
        "H-score": (lambda: h_score(x, y), lambda: textbook_h_score(double, labels)),
        "H-score, shrinkage": (lambda: h_score(x, y, shrinkage=True), None),
        "LEEP": (lambda: leep(theta, y), lambda: textbook_leep(theta.double().numpy(), labels)),
        "NCE": (lambda: nce(z, y), lambda: textbook_nce(z.numpy(), labels)),
        "CKA": (lambda: linear_cka(x, other), lambda: textbook_cka(x.numpy(), other.numpy())),
        "CKA, unbiased": (lambda: linear_cka(x, other, unbiased=True), None),
    }
    few, others = x[:2500].double(), other[:2500].double()
    assert abs(float(linear_cka(few, others)) - textbook_cka(few.numpy(), others.numpy())) < 1e-10
    rows = {}
    for name, (ours, textbook) in pairs.items():
        value, wall, used = timed(ours, options.repeats)
        rows[name] = {"value": value, "seconds": wall, "processor_seconds": used}
        if textbook is not None:
            theirs, wall, used = timed(textbook, 1)
            # the float32 means of the textbook CKA are wrong in the fourth digit
            assert abs(theirs - value) < (1e-3 if name == "CKA" else 1e-7), (name, value, theirs)
            rows[name] |= {"textbook": theirs, "textbook_seconds": wall, "textbook_processor_seconds": used}
        print(name, {key: round(number, 4) for key, number in rows[name].items()}, flush=True)
    content = {"threads": options.threads, "processor": processor(), "load": os.getloadavg()[0], "rows": rows}
    (Path(__file__).parent / "results" / "transfer_speed.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
