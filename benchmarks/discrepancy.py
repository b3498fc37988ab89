"""Multi-kernel MMD, forward and backward, beside the written formula: time and peak memory.

python benchmarks/discrepancy.py --threads 1

The formula as it is often written: all differences in one tensor (n + m, n + m, d), a kernel for each multiplier. Both
must give the same value and gradients, within rounding, before anything is timed. Runs alternate; each peak is that of
a process of its own, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metatransfer.callbacks.run.report import machine
from metatransfer.functional.domain.discrepancy import MULTIPLIERS, mmd

Discrepancy = Callable[[Tensor, Tensor], Tensor]


def written(source: Tensor, target: Tensor) -> Tensor:
    """The unbiased estimate by broadcasting."""
    joint, n, m = torch.cat([source, target]), len(source), len(target)
    distances = (joint.unsqueeze(0) - joint.unsqueeze(1)).square().sum(2)
    gamma = distances.detach()[~torch.eye(n + m, dtype=torch.bool)].median()
    kernel = sum(torch.exp(-distances / (u * gamma)) for u in MULTIPLIERS) / len(MULTIPLIERS)
    own, other = kernel[:n, :n], kernel[n:, n:]
    return (own.sum() - n) / (n * (n - 1)) + (other.sum() - m) / (m * (m - 1)) - 2 * kernel[:n, n:].mean()


CONTENDERS: dict[str, Discrepancy] = {"metatransfer": mmd, "broadcast": written}


def batch(size: int, features: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Features of two domains, the target's moved by a tenth."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(size, features, generator=generator).to(dtype) for _ in range(2))
    return source.requires_grad_(), (target + 0.1).requires_grad_()


def passes(function: Discrepancy, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The value and both gradients."""
    value = function(*pair)
    return value.detach(), *torch.autograd.grad(value, pair)


def seconds(function: Discrepancy, pair: tuple[Tensor, Tensor]) -> float:
    start = time.perf_counter()
    passes(function, pair)
    return time.perf_counter() - start


def peak(name: str, size: int, features: int) -> float:
    """Peak resident memory of a forward and a backward pass, in MiB above what was there before; on Linux."""
    passes(mmd, batch(4, 8))  # what any first call loads
    pair = batch(size, features)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    passes(CONTENDERS[name], pair)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """Memory of this process in KiB, as the system tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_apart(name: str, options: argparse.Namespace) -> float:
    """:func:`peak` in a process of its own."""
    sizes = ["--batch", str(options.batch), "--features", str(options.features), "--threads", str(options.threads)]
    done = subprocess.run(
        [sys.executable, __file__, "--peak", name, *sizes], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def agreement(size: int, features: int) -> float:
    """The largest difference of gradients beside the largest gradient, and of values, in single precision.

    Raises:
        SystemExit: they are not the same.
    """
    ours, theirs = (passes(function, batch(size, features)) for function in CONTENDERS.values())
    exact = passes(mmd, batch(size, features, torch.float64))
    value = abs(float(ours[0] - theirs[0]))
    gradient = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours[1:], theirs[1:], strict=True))
    rounding = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours[1:], exact[1:], strict=True))
    print(f"values within {value:.1e}, gradients within {gradient:.1e}; ours within {rounding:.1e} of float64")
    if value > 1e-6 or max(gradient, rounding) > 1e-4:
        raise SystemExit("the results differ: nothing is timed")
    return gradient


def main() -> None:
    """Measures, prints, writes results/discrepancy.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256, help="samples of each domain")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", choices=tuple(CONTENDERS), help="measure one peak in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak, options.batch, options.features))
        return
    error = agreement(options.batch, options.features)
    pair = batch(options.batch, options.features)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, function in CONTENDERS.items():
            times[name].append(seconds(function, pair))
    middle = {name: statistics.median(values) for name, values in times.items()}
    peaks = {name: round(peak_apart(name, options), 1) for name in CONTENDERS}
    ratio = middle["broadcast"] / middle["metatransfer"]
    for name in CONTENDERS:
        print(f"{name:13} median {1e3 * middle[name]:9.1f} ms, peak {peaks[name]:8.1f} MiB")
    print(f"{ratio:.0f} times as fast, {peaks['broadcast'] / peaks['metatransfer']:.0f} times less memory")
    content = {
        "batch": f"2 x {options.batch} samples of {options.features} features, {len(MULTIPLIERS)} kernels",
        "seconds": times,
        "median_s": middle,
        "ratio": ratio,
        "peak_mib": peaks,
        "gradient_difference": error,
        "machine": machine(torch.device("cpu")),
    }
    (Path(__file__).parent / "results" / "discrepancy.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
