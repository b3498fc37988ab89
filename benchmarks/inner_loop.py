"""Second-order MAML beside learn2learn, higher and TorchOpt: same network, tasks and gradients, one alternating run.

Usage: python benchmarks/inner_loop.py [--case sinusoid|omniglot|all] [--threads 2] [--runs 10] [--output FILE.json]
       python benchmarks/inner_loop.py --grow   (how our time grows with tasks, steps, ways and width)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metatransfer import MLP, Conv4
from metatransfer.functional import Params, adapt_tasks, choose_batching, mean_over_parts, over_tasks, sgd, stateless
from metatransfer.functional.meta.compiled import CompiledLoss

Gradients = list[Tensor]
COMPILED: dict[tuple[int, int], CompiledLoss] = {}


class Case(NamedTuple):
    """A network, a meta-batch and an inner rate."""

    name: str
    network: nn.Module
    plain: nn.Module
    batch: tuple[Tensor, Tensor, Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float


def sinusoid(tasks: int = 25, width: int = 40) -> Case:
    """The regression network of MAML, 10 support and 10 query points."""
    network = nn.Sequential(MLP((1,), (width, width)), nn.Linear(width, 1))
    plain = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), 3.14 * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, 20, 1) - 5
    y = amplitude * torch.sin(x - phase)
    return Case(
        "sinusoid", network, same(plain, network), (x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]), F.mse_loss, 0.01
    )


def omniglot(tasks: int = 32, ways: int = 5, width: int = 64) -> Case:
    """Conv4 on the shapes of Omniglot 1-shot with 15 queries of each class; the pixels are noise."""
    network = nn.Sequential(Conv4(hidden_channels=width), nn.Linear(width, ways))
    blocks: list[nn.Module] = []
    for channels in (1, width, width, width):
        blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    plain = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width, ways))
    label = torch.arange(ways)
    batch = (
        torch.rand(tasks, ways, 1, 28, 28), label.expand(tasks, -1),
        torch.rand(tasks, 15 * ways, 1, 28, 28), label.repeat(15).expand(tasks, -1),
    )  # fmt: skip
    return Case("omniglot", network, same(plain, network), batch, F.cross_entropy, 0.4)


def same(plain: nn.Module, network: nn.Module) -> nn.Module:
    """``plain``, as a peer's user writes it, with the weights of ``network``."""
    for theirs, ours in zip(plain.parameters(), network.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    return plain.train()


def ours(case: Case, steps: int) -> Gradients:
    """This package, as ``MAMLModule`` calls it."""
    forward, params = stateless(case.network), dict(case.network.named_parameters())
    batching = choose_batching(case.network, case.batch[0])

    def outer_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> tuple[Tensor, Tensor]:
        [adapted], _ = adapt_tasks(
            forward, params, support_x, support_y, steps=steps, update=sgd(case.lr), loss=case.loss, batching=batching
        )
        outputs = over_tasks(forward, adapted, query_x, batching=batching)
        return case.loss(outputs.flatten(0, 1), query_y.flatten(0, 1)), outputs

    leaves = list(params.values())
    part = None if batching == "vmap" else 1
    loss, _ = mean_over_parts(outer_loss, *case.batch, chunk_size=part, leaves=leaves, threads=batching == "threads")
    return list(torch.autograd.grad(loss, leaves))


def compiled(case: Case, steps: int) -> Gradients:
    """This package, as ``MAMLModule(compile=True)`` calls it."""
    if (id(case.network), steps) not in COMPILED:
        forward, batching = stateless(case.network), choose_batching(case.network, case.batch[0])

        def outer_loss(params: Params, *batch: Tensor) -> tuple[Tensor, ...]:
            support_x, support_y, query_x, query_y = batch
            [adapted], _ = adapt_tasks(
                forward, params, support_x, support_y, steps=steps, update=sgd(case.lr), loss=case.loss,
                batching=batching,
            )  # fmt: skip
            outputs = over_tasks(forward, adapted, query_x, batching=batching)
            return (case.loss(outputs.flatten(0, 1), query_y.flatten(0, 1)),)

        COMPILED[id(case.network), steps] = CompiledLoss(outer_loss)
    found = COMPILED[id(case.network), steps](dict(case.network.named_parameters()), *case.batch)[1]
    return [gradient for gradient in found if gradient is not None]


def plain_autograd(case: Case, steps: int) -> Gradients:
    """The loop that one writes without any package."""
    network, losses = case.plain, []
    for support_x, support_y, query_x, query_y in zip(*case.batch, strict=True):
        params = dict(network.named_parameters())
        for _ in range(steps):
            loss = case.loss(torch.func.functional_call(network, params, support_x), support_y)
            found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: value - case.lr * g for (name, value), g in zip(params.items(), found, strict=True)}
        losses.append(case.loss(torch.func.functional_call(network, params, query_x), query_y))
    return list(torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters())))


def learn2learn(case: Case, steps: int) -> Gradients:
    """learn2learn's MAML wrapper; each task's loss is differentiated at once, as in its examples."""
    with contextlib.redirect_stderr(io.StringIO()):  # gym's farewell
        import learn2learn as l2l

    maml = l2l.algorithms.MAML(case.plain, lr=case.lr, first_order=False)
    maml.zero_grad()
    for support_x, support_y, query_x, query_y in zip(*case.batch, strict=True):
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(case.loss(learner(support_x), support_y))
        case.loss(learner(query_x), query_y).backward()
    return [value.grad / len(case.batch[0]) for value in case.plain.parameters()]  # type: ignore[operator]


def higher(case: Case, steps: int) -> Gradients:
    """Higher's ``innerloop_ctx`` with differentiable SGD, as in its MAML example."""
    import higher as package

    case.plain.zero_grad()
    optimizer = torch.optim.SGD(case.plain.parameters(), lr=case.lr)
    for support_x, support_y, query_x, query_y in zip(*case.batch, strict=True):
        with package.innerloop_ctx(case.plain, optimizer, copy_initial_weights=False) as (network, inner):
            for _ in range(steps):
                inner.step(case.loss(network(support_x), support_y))
            case.loss(network(query_x), query_y).backward()
    return [value.grad / len(case.batch[0]) for value in case.plain.parameters()]  # type: ignore[operator]


def torchopt(case: Case, steps: int) -> Gradients:
    """TorchOpt's ``MetaSGD``, as in its few-shot example."""
    import torchopt as package

    network, losses = case.plain, []
    inner = package.MetaSGD(network, lr=case.lr)
    network_state = package.extract_state_dict(network, by="reference", detach_buffers=True)
    inner_state = package.extract_state_dict(inner, by="reference")
    start = list(network.parameters())
    for support_x, support_y, query_x, query_y in zip(*case.batch, strict=True):
        for _ in range(steps):
            inner.step(case.loss(network(support_x), support_y))
        losses.append(case.loss(network(query_x), query_y))
        package.recover_state_dict(network, network_state)
        package.recover_state_dict(inner, inner_state)
    found = torch.autograd.grad(torch.stack(losses).mean(), start)
    # MetaSGD leaves tensors where the parameters were
    package.stop_gradient(network)
    return list(found)


CONTENDERS = {
    "metatransfer": ours,
    "metatransfer, compiled": compiled,
    "plain autograd": plain_autograd,
    "learn2learn": learn2learn,
    "higher": higher,
    "torchopt": torchopt,
}
PEERS = ("learn2learn", "higher", "torchopt")


def agreement(make: Callable[..., Case], steps: int) -> dict[str, float]:
    """Relative difference of each contender's outer gradient from the plain loop's, in float64, on a small batch."""
    errors = {}
    for name, contender in CONTENDERS.items():
        torch.manual_seed(0)
        case = make(tasks=3)
        if name == "metatransfer, compiled" and case.name != "sinusoid":
            continue
        case.network.double()
        case = case._replace(
            plain=same(case.plain.double(), case.network),
            batch=tuple(t.double() if t.is_floating_point() else t for t in case.batch),  # type: ignore[arg-type]
        )
        expected = torch.cat([g.flatten() for g in plain_autograd(case, steps)])
        found = torch.cat([g.flatten() for g in contender(case, steps)])
        errors[name] = float((found - expected).norm() / expected.norm())
    return errors


def seconds(case: Case, steps: int, runs: int, names: list[str]) -> dict[str, list[float]]:
    """Wall times of alternating runs, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs + 1):
        for name in names:
            start = time.perf_counter()
            CONTENDERS[name](case, steps)
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def convolution_peak(images: int = 75, width: int = 64) -> float:
    """The best rate, in GFLOP/s, of the bare convolutions of Conv4, forward and backward, in either memory format."""
    best = 0.0
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in (28, 14, 7):
            channels = 1 if size == 28 else width
            x = torch.randn(images, channels, size, size).to(memory_format=layout).requires_grad_(size != 28)
            weight = torch.randn(width, channels, 3, 3).to(memory_format=layout).requires_grad_()
            flops = (2 if size == 28 else 3) * 2 * 9 * channels * width * size**2 * images
            gradient = torch.randn(images, width, size, size).to(memory_format=layout)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                F.conv2d(x, weight, padding=1).backward(gradient)
                times.append(time.perf_counter() - start)
            best = max(best, flops / min(times) / 1e9)
    return best


def machine() -> str:
    """One line that says what the figures belong to."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), cpu)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", *PEERS))
    return f"{cpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {packages}"


def compare(make: Callable[..., Case], runs: int) -> list[dict[str, object]]:
    """Checks the gradients, then measures, at 1 and 5 inner steps."""
    rows: list[dict[str, object]] = []
    for steps in (1, 5):
        errors = agreement(make, steps)
        torch.manual_seed(0)
        case = make()
        # compiling convolutions takes minutes and gains nothing on a CPU
        names = [name for name in CONTENDERS if case.name == "sinusoid" or name != "metatransfer, compiled"]
        started = time.perf_counter()
        if case.name == "sinusoid":
            compiled(case, steps)
        compilation = time.perf_counter() - started
        times = seconds(case, steps, runs, names)
        best = {name: min(values) for name, values in times.items()}
        middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
        fastest = min(PEERS, key=lambda name: best[name])
        print(f"{case.name}, {len(case.batch[0])} tasks, {steps} inner steps; {runs} alternating runs")
        for name in names:
            print(
                f"  {name:22s} best {best[name] * 1e3:9.2f} ms  median {middle[name] * 1e3:9.2f} ms  "
                f"gradient within {errors[name]:.1e}"
            )
        row: dict[str, object] = {
            "case": case.name, "tasks": len(case.batch[0]), "steps": steps, "runs": runs, "best_s": best,
            "median_s": middle, "gradient_error": errors, "fastest_peer": fastest,
            "ratio_best": best[fastest] / best["metatransfer"],
            "ratio_median": min(middle[name] for name in PEERS) / middle["metatransfer"],
        }  # fmt: skip
        print(f"  ratio to {fastest}: {row['ratio_best']:.2f} (best), {row['ratio_median']:.2f} (median)")
        if case.name == "sinusoid":
            ratio = best[fastest] / best["metatransfer, compiled"]
            row |= {"compilation_s": compilation, "ratio_compiled": ratio}
            print(f"  compiled in {compilation:.0f} s: {ratio:.2f} times as fast as {fastest}")
        if case.name == "omniglot":
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # the counter sees its own thread
            with FlopCounterMode(display=False) as counter:
                ours(case, steps)
            torch.set_num_threads(threads)
            rate, peak = counter.get_total_flops() / best["metatransfer"] / 1e9, convolution_peak()
            row |= {"gflops_per_s": rate, "convolution_peak_gflops_per_s": peak}
            print(f"  {rate:.0f} GFLOP/s, {rate / peak:.0%} of the convolution peak, {peak:.0f} GFLOP/s")
        rows.append(row)
    return rows


def growth(runs: int) -> list[dict[str, object]]:
    """Our time as one quantity grows and the others stay."""
    makes = {
        "sinusoid tasks": [(n, lambda n=n: sinusoid(tasks=n), 1) for n in (1, 5, 25, 100, 400)],
        "sinusoid steps": [(n, sinusoid, n) for n in (1, 2, 5, 10, 20)],
        "sinusoid width": [(n, lambda n=n: sinusoid(width=n), 1) for n in (20, 40, 80, 160, 320)],
        "omniglot tasks": [(n, lambda n=n: omniglot(tasks=n), 1) for n in (1, 2, 4, 8)],
        "omniglot steps": [(n, lambda: omniglot(tasks=4), n) for n in (1, 2, 5, 10)],
        "omniglot ways": [(n, lambda n=n: omniglot(tasks=4, ways=n), 1) for n in (2, 5, 10, 20)],
        "omniglot width": [(n, lambda n=n: omniglot(tasks=4, width=n), 1) for n in (16, 32, 64, 128)],
    }
    rows: list[dict[str, object]] = []
    for name, points in makes.items():
        found = {
            size: min(seconds(make(), steps, runs, ["metatransfer"])["metatransfer"]) for size, make, steps in points
        }
        print(name, {size: f"{value * 1e3:.1f} ms" for size, value in found.items()})
        rows.append({"grows": name, "best_s": found})
    return rows


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("sinusoid", "omniglot", "all"), default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    learn2learn(sinusoid(1), 1)  # imports speak before the table does
    print(machine())
    cases = {"sinusoid": sinusoid, "omniglot": omniglot}
    chosen = cases if options.case == "all" else {options.case: cases[options.case]}
    rows = (
        growth(options.runs) if options.grow else [r for make in chosen.values() for r in compare(make, options.runs)]
    )
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
