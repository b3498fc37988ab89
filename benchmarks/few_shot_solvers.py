"""MetaOptNet's support vector machines: the batched solver beside loops over general solvers of quadratic programs.

    python benchmarks/few_shot_solvers.py [--threads 1] [--output FILE.json]

The dual programs of a meta-batch of tasks, forward and backward: a solution, and the gradient of a fixed linear
function of the weights with respect to the embeddings. qpth solves them task by task as well as in its own batch, in
double precision as here; scipy's SLSQP has no gradient, so that its solution of
one task is compared first and timed alone. qpth needs a strictly convex program, so that the kernels have
at least as many features as samples. All run alternately in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from qpth.qp import QPFunction
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from metatransfer.callbacks.run.report import processor_name
from metatransfer.functional import svm_dual

STRENGTH = 0.1
Solver = Callable[[Tensor, Tensor, int], Tensor]


def tasks(count: int, ways: int, shots: int, features: int = 64) -> tuple[Tensor, Tensor]:
    """Embeddings around a mean for each class, and their labels."""
    labels = torch.arange(ways).repeat(shots).expand(count, -1)
    means = torch.randn(count, ways, features, dtype=torch.float64)
    noise = torch.randn(count, ways * shots, features, dtype=torch.float64)
    return means.gather(1, labels.unsqueeze(-1).expand(-1, -1, features)) + 0.5 * noise, labels


def program(x: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, ...]:
    """The programs of tasks as qpth takes them: Q, p, G, h, A, b, of variables in the order (sample, class)."""
    count, samples, _ = x.shape
    kernel = (x @ x.mT).reshape(count, samples, 1, samples, 1) * torch.eye(ways).double().reshape(1, 1, ways, 1, ways)
    own = torch.nn.functional.one_hot(labels, ways).double().flatten(1)
    size = samples * ways
    sums = torch.kron(torch.eye(samples), torch.ones(1, ways)).double()
    return (
        kernel.reshape(count, size, size), -own, torch.eye(size).double().expand(count, -1, -1), STRENGTH * own,
        sums.expand(count, -1, -1), torch.zeros(count, samples).double(),
    )  # fmt: skip


def qpth_batch(x: Tensor, labels: Tensor, ways: int) -> Tensor:
    """All tasks in one call of qpth."""
    found = QPFunction(verbose=-1, check_Q_spd=False)(*program(x, labels, ways))
    return found.reshape(len(x), -1, ways)


def qpth_loop(x: Tensor, labels: Tensor, ways: int) -> Tensor:
    """One call of qpth for each task."""
    return torch.cat([qpth_batch(one, own, ways) for one, own in zip(x.split(1), labels.split(1), strict=True)])


def ours(x: Tensor, labels: Tensor, ways: int) -> Tensor:
    """This package."""
    return svm_dual(x, labels, ways, STRENGTH)


SOLVERS: dict[str, Solver] = {"metatransfer": ours, "qpth, task by task": qpth_loop, "qpth, batched": qpth_batch}


def run(solver: Solver, x: Tensor, labels: Tensor, ways: int, along: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the machines, and the gradient."""
    x = x.detach().requires_grad_()
    weights = solver(x, labels, ways).mT @ x
    return weights.detach(), torch.autograd.grad((weights * along).sum(), x)[0]


def general(x: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, float]:
    """The weights of one task by SLSQP, and its seconds."""
    q, p, _, h, a, _ = (part[0].numpy() for part in program(x[None], labels[None], ways))
    start = time.perf_counter()
    found = minimize(
        lambda v: 0.5 * v @ q @ v + p @ v, np.zeros(len(p)), jac=lambda v: q @ v + p, method="SLSQP",
        bounds=[(None, bound) for bound in h], constraints=LinearConstraint(a, 0, 0),
        options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return torch.from_numpy(found.x).reshape(-1, ways).T @ x, time.perf_counter() - start


def compare(count: int, ways: int, shots: int, runs: int) -> dict[str, object]:
    """Equal results first, then alternating runs."""
    torch.manual_seed(0)
    x, labels = tasks(count, ways, shots)
    along = torch.randn(count, ways, x.shape[-1], dtype=torch.float64)
    expected = run(ours, x, labels, ways, along)
    differences = {
        name: [
            float((a - b).abs().max() / b.abs().max())
            for a, b in zip(run(solver, x, labels, ways, along), expected, strict=True)
        ]
        for name, solver in SOLVERS.items()
    }
    weights, seconds = general(x[0], labels[0], ways)
    differences["scipy SLSQP"] = [float((weights - expected[0][0]).abs().max() / expected[0][0].abs().max())]
    times: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for _ in range(runs):
        for name, solver in SOLVERS.items():
            start = time.perf_counter()
            run(solver, x, labels, ways, along)
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(b / a for a, b in zip(times["metatransfer"], values, strict=True))
        for name, values in times.items()
    }
    print(f"{ways}-way {shots}-shot, {count} tasks; {runs} alternating runs, forward and backward")
    for name, value in median.items():
        solution, gradient = differences[name]
        print(
            f"  {name:20s} {value * 1e3:9.2f} ms, {ratios[name]:6.1f} times ours; weights within {solution:.0e}, "
            f"gradient within {gradient:.0e} of ours"
        )
    print(f"  scipy SLSQP, 1 task, forward alone {seconds * 1e3:.1f} ms, within {differences['scipy SLSQP'][0]:.0e}")
    return {
        "ways": ways, "shots": shots, "tasks": count, "runs": runs, "median_s": median, "ratio": ratios,
        "difference": differences, "slsqp_one_task_s": seconds,
    }  # fmt: skip


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "qpth", "scipy"))
    machine = f"{processor_name()}, {options.threads} threads, Python {platform.python_version()}, {packages}"
    print(machine)
    rows = [compare(*case, options.runs) for case in ((8, 5, 1), (8, 5, 5), (32, 5, 1))]
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
