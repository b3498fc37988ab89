"""ProtoNet's training step beside learn2learn's example and easyfsl's PrototypicalNetworks.

    python benchmarks/few_shot_speed.py [--threads 1] [--rounds 7]

5-way 1-shot with 15 queries, 32 tasks, Conv4-64 at 28x28, Adam: forward, backward and the step of the optimiser. Ours
embeds all tasks in one pass. The peers take one task at a time, as they do for their users, accumulate the gradients
of the 32 tasks and step once; their network is the textbook's (convolution, BatchNorm, ReLU, pooling) with the same
weights.

Before that, ours takes ten steps, and the losses of all are compared with BatchNorm in evaluation mode, since the peers
normalise each task by itself in training. The tasks are those of Glyphs. easyfsl scores by distances that are not
squared; for the comparison of losses they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easyfsl.methods import PrototypicalNetworks
from torch import Tensor, nn

from metatransfer import Conv4, Episode, Episodes, EpisodicDataModule, Glyphs, ProtoNetModule, Task
from metatransfer.callbacks.run.report import processor_name
from metatransfer.host_memory import keep_freed_memory

TASKS, WAYS, SHOTS, QUERIES, WIDTH = 32, 5, 1, 15, 64
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
TaskLoss = Callable[[nn.Module, Tensors], Tensor]


def textbook(backbone: Conv4) -> nn.Sequential:
    """The same network as it is usually written, with the same weights."""
    blocks: list[nn.Module] = []
    for channels in (1, WIDTH, WIDTH, WIDTH):
        blocks += [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*blocks, nn.Flatten())
    network.load_state_dict(dict(zip(network.state_dict(), backbone.state_dict().values(), strict=True)))
    return network


def learn2learn_loss(network: nn.Module, task: Tensors) -> Tensor:
    """``fast_adapt`` of learn2learn's ProtoNet example, which sorts the samples of a task by class."""
    data, labels = torch.cat([task[0], task[2]]), torch.cat([task[1], task[3]])
    order = torch.sort(labels, stable=True)
    data, labels = data[order.indices], order.values
    embeddings = network(data)
    chosen = np.zeros(len(data), dtype=bool)
    first = np.arange(WAYS) * (SHOTS + QUERIES)
    for offset in range(SHOTS):
        chosen[first + offset] = True
    support = embeddings[torch.from_numpy(chosen)].reshape(WAYS, SHOTS, -1).mean(dim=1)
    rest = torch.from_numpy(~chosen)
    query, n = embeddings[rest], WAYS * QUERIES
    logits = -((query.unsqueeze(1).expand(n, WAYS, -1) - support.unsqueeze(0).expand(n, WAYS, -1)) ** 2).sum(dim=2)
    return F.cross_entropy(logits, labels[rest])


def easyfsl_loss(network: nn.Module, task: Tensors, squared: bool = False) -> Tensor:
    """The classifier of easyfsl, as in its tutorial."""
    classifier = PrototypicalNetworks(network)
    classifier.process_support_set(task[0], task[1])
    scores = classifier(task[2])
    return F.cross_entropy(-scores.square() if squared else scores, task[3])


def peer_step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: TaskLoss, batch: Episode) -> None:
    """One step of a peer."""
    optimizer.zero_grad()
    for task in zip(*batch[:4], strict=True):
        (loss(network, task) / TASKS).backward()
    optimizer.step()


def our_step(module: ProtoNetModule, optimizer: torch.optim.Optimizer, batch: Episode) -> None:
    """One step of ours."""
    optimizer.zero_grad()
    module.training_loss(batch)[0].backward()
    optimizer.step()


def main() -> None:
    """Compares the losses, then measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every run of a Trainer does; tensors of the peers' tasks are too small to be concerned
    torch.manual_seed(0)
    data = EpisodicDataModule(
        Glyphs(), task=Task(num_ways=WAYS, num_shots=SHOTS, num_queries=QUERIES), episodes=Episodes(per_batch=TASKS)
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = ProtoNetModule(Conv4(hidden_channels=WIDTH))
    adam = torch.optim.Adam(module.train().parameters(), lr=1e-3)
    for _ in range(10):
        our_step(module, adam, batch)
    networks = {name: textbook(module.backbone) for name in ("learn2learn", "easyfsl")}
    with torch.no_grad():
        expected = module.eval().loss(module(batch), batch.query_y)
        tasks = list(zip(*batch[:4], strict=True))
        losses = {"learn2learn": learn2learn_loss, "easyfsl": partial(easyfsl_loss, squared=True)}
        theirs = {
            name: torch.stack([loss(networks[name].eval(), task) for task in tasks]).mean()
            for name, loss in losses.items()
        }
    for name, value in theirs.items():
        print(f"loss of {name} {value:.7f}, ours {expected:.7f}")
        assert abs(float(value - expected)) < 1e-5 * float(expected), "the losses differ"

    steps: dict[str, Callable[[], None]] = {}
    module.train()
    steps["metatransfer"] = lambda: our_step(module, adam, batch)
    for name, loss in (("learn2learn", learn2learn_loss), ("easyfsl", easyfsl_loss)):
        network = networks[name].train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        steps[name] = lambda network=network, optimizer=optimizer, loss=loss: peer_step(network, optimizer, loss, batch)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(arguments.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if index:  # the first is left out
                times[name].append(time.perf_counter() - start)
    own = times["metatransfer"]
    found = {
        "work": f"ProtoNet, Conv4-{WIDTH} at 28x28, {TASKS} tasks, {WAYS}-way {SHOTS}-shot {QUERIES} queries, "
        f"{arguments.rounds} alternating rounds",
        "median_s": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "ratio": {
            name: round(statistics.median(b / a for a, b in zip(own, values, strict=True)), 3)
            for name, values in times.items()
        },
        "threads": arguments.threads,
        "machine": processor_name(),
        "packages": f"Python {platform.python_version()}, torch {torch.__version__}, easyfsl {version('easyfsl')}, "
        "learn2learn's example as published",
    }  # fmt: skip
    path = Path(__file__).resolve().parent / "results" / "few_shot_speed.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
