"""Peak memory of second-order MAML against the number of inner steps, with and without recomputing them.

Conv4-64, 32 tasks at once, 5-way 1-shot; each point in a process of its own, by its peak resident size less what it had
before the pass.

Usage: python benchmarks/memory.py [--tasks 32] [--queries 15] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from metatransfer import Conv4
from metatransfer.functional import adapt_tasks, episode_loss, over_tasks, sgd, stateless

STEPS = (1, 2, 5, 10, 20)


def peak(steps: int, checkpoint: bool, tasks: int, queries: int) -> float:
    """Peak resident memory of one outer gradient, in MiB above what was there before."""
    torch.manual_seed(0)
    network = nn.Sequential(Conv4(), nn.Linear(64, 5))
    forward, params = stateless(network), dict(network.named_parameters())
    label = torch.arange(5)
    support_x, query_x = torch.rand(tasks, 5, 1, 28, 28), torch.rand(tasks, 5 * queries, 1, 28, 28)
    support_y, query_y = label.expand(tasks, -1), label.repeat(queries).expand(tasks, -1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [adapted], _ = adapt_tasks(
        forward, params, support_x, support_y, steps=steps, update=sgd(0.01), checkpoint=checkpoint
    )
    # all tasks in one graph: what a loop that differentiates task by task never has
    loss = episode_loss(over_tasks(forward, adapted, query_x), query_y)
    torch.autograd.grad(loss, list(params.values()))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measures each point in a fresh process, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--point", nargs=2, type=int, metavar=("STEPS", "CHECKPOINT"), help="measure one point")
    options = parser.parse_args()
    if options.point:
        print(peak(options.point[0], bool(options.point[1]), options.tasks, options.queries))
        return
    rows: dict[str, dict[int, float]] = {"kept": {}, "recomputed": {}}
    for name, flag in (("kept", 0), ("recomputed", 1)):
        for steps in STEPS:
            sizes = ["--tasks", str(options.tasks), "--queries", str(options.queries)]
            command = [sys.executable, __file__, "--point", str(steps), str(flag), *sizes]
            done = subprocess.run(command, capture_output=True, text=True)  # may be killed for want of memory
            if done.returncode == 0:
                rows[name][steps] = float(done.stdout.split()[-1])
                ratio = rows[name][steps] / rows[name].get(1, float("nan"))
                print(
                    f"{name:10s} {steps:2d} steps: {rows[name][steps]:8.0f} MiB, {ratio:.2f} times one step", flush=True
                )
            else:
                print(f"{name:10s} {steps:2d} steps: failed with {done.returncode}", flush=True)
    if options.output:
        result = {"tasks": options.tasks, "queries_per_class": options.queries, "peak_mib": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
