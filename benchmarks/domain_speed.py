"""DANN's steps per second beside a plain loop with two DataLoaders and per-item transforms.

    python benchmarks/domain_speed.py [--threads 1]

LeNet at 128 + 128 images of 28x28, equal weights, the same optimiser, the same loss (compared on one batch first). Both
train from arrays in memory; the plain loop as a user writes it: convolution, ReLU and pooling in that order, as the
textbook has them, PIL images with torchvision's ``ToTensor`` and ``Normalize`` for each item, two shuffled loaders,
zipped. Ours runs in the Trainer with everything that it does by default, normalising too.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from metatransfer import (
    Arrays,
    DANNModule,
    Division,
    DomainBatch,
    DomainDataModule,
    LabelledDataModule,
    LeNet,
    PerceptronHead,
    Processing,
)
from metatransfer.callbacks.run.report import processor_name
from metatransfer.nn import reverse_gradient

BATCH, SAMPLES = 128, 6400


class Images(Dataset):
    """Images with a transform for each, as torchvision's data sets have it."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        """How many."""
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image and its label."""
        return self.transform(Image.fromarray(self.x[index, 0])), int(self.y[index])


def textbook(network: LeNet) -> nn.Sequential:
    """The same network as it is usually written."""
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    blocks = [part for one in convolutions for part in (one, nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*blocks, nn.Flatten())


def plain_step(module: DANNModule, backbone: nn.Module, source: list, target: list, strength: float) -> torch.Tensor:
    """DANN's loss as its textbook loop has it."""
    features = backbone(torch.cat([source[0], target[0]]))
    loss = F.cross_entropy(module.head(features[: len(source[0])]), source[1])
    domains = module.discriminator(reverse_gradient(features, strength))
    truth = torch.cat([torch.ones(len(source[0])), torch.zeros(len(target[0]))])
    return loss + F.binary_cross_entropy_with_logits(domains, truth)


class Clock(Callback):
    """Times the steps after the first ones."""

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Notes the time."""
        if trainer.global_step == 5:
            self.start = time.perf_counter()
        self.end, self.steps = time.perf_counter(), trainer.global_step - 5


def ours(module: DANNModule, data: DomainDataModule, steps: int) -> float:
    """Steps per second in the Trainer."""
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps + 5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return clock.steps / (clock.end - clock.start)


def plain(module: DANNModule, source: Images, target: Images, steps: int) -> float:
    """Steps per second of the plain loop."""
    optimizer, backbone = torch.optim.Adam(module.parameters(), lr=1e-3), textbook(module.backbone)
    loaders = (DataLoader(one, BATCH, shuffle=True, drop_last=True) for one in (source, target))
    start = 0.0
    for step, batch in enumerate(cycle(zip(*loaders, strict=False))):
        if step == 5:
            start = time.perf_counter()
        if step == steps + 5:
            break
        optimizer.zero_grad()
        plain_step(module, backbone, *batch, 2 / (1 + np.exp(-10 * step / steps)) - 1).backward()
        optimizer.step()
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    draw = np.random.default_rng(0)
    x = [draw.integers(0, 256, (SAMPLES, 1, 28, 28), dtype=np.uint8) for _ in range(2)]
    y = np.arange(SAMPLES) % 10
    division = Division(val_fraction=0.01, test_fraction=0.01)
    processing = Processing(transform=[v2.Normalize([0.5], [0.5])])
    served = [LabelledDataModule(Arrays.from_arrays(one, y), division=division, processing=processing) for one in x]
    data = DomainDataModule({"source": served[0]}, {"target": served[1]}, batch_size=BATCH)
    make = partial(DANNModule, head=PerceptronHead, optimizer=partial(torch.optim.Adam, lr=1e-3))
    sets = [Images(one, y) for one in x]

    module = make(LeNet(), 10)
    pair = [next(iter(DataLoader(one, BATCH))) for one in sets]
    nothing = torch.zeros(BATCH, dtype=torch.int64)
    batch = DomainBatch(pair[0][0], pair[0][1], pair[1][0], nothing, nothing, nothing, nothing)
    mine, theirs = module.training_loss(batch)[0], plain_step(module, textbook(module.backbone), *pair, module.strength)
    assert abs(float(mine - theirs)) < 1e-6, "the losses differ"

    rates: dict[str, list[float]] = {"ours": [], "plain loop": []}
    for _ in range(arguments.rounds):
        rates["ours"].append(ours(make(LeNet(), 10), data, arguments.steps))
        rates["plain loop"].append(plain(make(LeNet(), 10), *sets, arguments.steps))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    found = {
        "work": f"DANN, LeNet, {BATCH}+{BATCH} images of 28x28, {arguments.steps} steps, {arguments.rounds} rounds",
        "steps_per_second": {name: round(value, 2) for name, value in medians.items()},
        "ratio": round(ratio, 3),
        "threads": arguments.threads,
        "machine": processor_name(),
        "torch": str(torch.__version__),
    }
    path = Path(__file__).resolve().parent / "results" / "domain_speed.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
