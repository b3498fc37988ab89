"""Time of one training step of MANN's memory over a stream of 50 samples, beside the textbook form in Python loops.

The textbook form follows the equations: one sequence after the other, one step at a time, with a linear layer on the
input of each step and ``cosine_similarity``. The second form takes all sequences together, but is otherwise the same.
All have the same weights; equal outputs are checked first. Run it with ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.nn import LeastRecentlyUsedMemory


def textbook(network: LeastRecentlyUsedMemory, x: Tensor) -> Tensor:
    """The features of sequences ``(N, S, C)``, from the equations."""
    count, slots, heads, width = len(x), network.slots, network.heads, network.width
    hidden, cell = torch.zeros(count, network.hidden), torch.zeros(count, network.hidden)
    read, memory = torch.zeros(count, heads * width), torch.zeros(count, slots, width)
    w_read = torch.zeros(count, heads, slots)
    usage = torch.linspace(0, 1e-6, slots).expand(count, -1)
    features = []
    for t in range(x.shape[1]):
        gates = network.inputs(x[:, t]) + network.recurrent(torch.cat([hidden, read], -1))
        i, f, o, g = gates.chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        access = network.access(hidden).view(count, heads, 2 * width + 2)
        key = torch.tanh(access[..., :width])
        content = torch.tanh(access[..., width:-2])
        gate = torch.sigmoid(access[..., -2:-1])
        strength = 5 + F.softplus(access[..., -1:])
        least = F.one_hot(usage.topk(heads, largest=False).indices, slots).float()
        w_write = gate * w_read + (1 - gate) * least
        memory = memory * (1 - least.sum(1)).unsqueeze(-1)
        for head in range(heads):
            memory = memory + w_write[:, head].unsqueeze(-1) * content[:, head].unsqueeze(1)
        norms = key.norm(dim=-1, keepdim=True) * (memory.norm(dim=-1).unsqueeze(1) + 1e-3)
        cosine = (key.unsqueeze(2) * memory.unsqueeze(1)).sum(-1) / norms
        w_read = torch.softmax(strength * cosine, -1)
        read = (w_read.unsqueeze(-1) * memory.unsqueeze(1)).sum(2).flatten(1)
        usage = network.decay * usage + (w_read + w_write).sum(1).detach()
        features.append(torch.cat([hidden, read], -1))
    return torch.stack(features, 1)


def one_by_one(network: LeastRecentlyUsedMemory, x: Tensor) -> Tensor:
    """The same, one sequence after the other."""
    return torch.cat([textbook(network, sequence.unsqueeze(0)) for sequence in x])


def seconds(form: Callable[..., Tensor], network: LeastRecentlyUsedMemory, x: Tensor) -> float:
    """Time of the forward and the backward pass."""
    start = time.perf_counter()
    form(network, x).square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    network, x = LeastRecentlyUsedMemory(405), torch.rand(options.tasks, 50, 405)
    forms = {"scan": lambda network, x: network(x)[0], "sequence by sequence": one_by_one, "all together": textbook}
    with torch.no_grad():
        expected = one_by_one(network, x)
        for name, form in forms.items():
            torch.testing.assert_close(form(network, x), expected, rtol=1e-3, atol=1e-4, msg=name)
    taken = {name: [] for name in forms}
    for _ in range(options.repeats):
        for name, form in forms.items():
            taken[name].append(seconds(form, network, x))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:22s} {1000 * median:8.1f} ms  {median / medians['scan']:6.2f} times the scan")


if __name__ == "__main__":
    main()
