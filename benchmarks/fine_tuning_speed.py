"""Speed of fine-tuning beside a plain loop, and of twenty linear probes beside one pass through the network.

python benchmarks/fine_tuning_speed.py --threads 2

The plain loop is what one writes by hand: DataLoader, AdamW, cross-entropy. Both start from the same weights; their
weights after a first step on the same samples are compared before anything is timed. Rounds alternate.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from metatransfer import (
    Arrays,
    Division,
    FineTuneModule,
    LabelledDataModule,
    LinearProbe,
    TorchvisionBackbone,
)
from metatransfer.adapters import Labelled
from metatransfer.callbacks.run.report import machine

CLASSES, SIDE, BATCH = 10, 64, 32


def fine_tuning(module: FineTuneModule, data: LabelledDataModule, steps: int) -> float:
    """Seconds of so many steps by the Trainer, without the start."""
    times = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            times.append(time.perf_counter())

    trainer = pl.Trainer(
        max_steps=steps + 1, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return times[-1] - times[0]


def plain(network: torch.nn.Module, loader: DataLoader, steps: int) -> float:
    """Seconds of so many steps by a written loop, after one to warm up."""
    decayed = [value for value in network.parameters() if value.dim() > 1]
    others = [value for value in network.parameters() if value.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-3)
    network.train()
    done, start = 0, 0.0
    while done <= steps:
        for x, y in loader:
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if done == 0:
                start = time.perf_counter()
            done += 1
            if done > steps:
                break
    return time.perf_counter() - start


def main() -> None:
    """Measures, prints, writes results/fine_tuning_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    x, y = torch.rand(1280, 3, SIDE, SIDE), torch.arange(1280) % CLASSES
    data = LabelledDataModule(
        Arrays.from_arrays(x.numpy(), y.numpy()),
        batch_size=BATCH,
        division=Division(val_fraction=0.05, test_fraction=0.05),
    )
    backbone = TorchvisionBackbone("resnet18", in_channels=3, image_size=SIDE)
    module = FineTuneModule(backbone, CLASSES, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    network = torch.nn.Sequential(copy.deepcopy(backbone), copy.deepcopy(module.head))

    # the same first step
    data.setup("fit")
    first = next(iter(data.train_dataloader()))
    loader = DataLoader(TensorDataset(first.x, first.y), batch_size=BATCH)
    one, two = copy.deepcopy(module), copy.deepcopy(network)
    fine_tuning(one, data, 0)
    plain(two, loader, 0)
    away = max(
        float((value - other).abs().max())
        for value, other in zip([*one.backbone.parameters(), *one.head.parameters()], two.parameters(), strict=True)
    )
    assert away < 1e-5, f"the first steps differ by {away}"

    train = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(fine_tuning(copy.deepcopy(module), data, options.steps))
        theirs.append(plain(copy.deepcopy(network), train, options.steps))
    ratio = statistics.median(theirs) / statistics.median(ours)
    images = BATCH * options.steps
    print(f"fine-tuning: {images / statistics.median(ours):.1f} images/s, plain loop "
          f"{images / statistics.median(theirs):.1f}: {ratio:.3f} times")  # fmt: skip

    # twenty rates on features against one pass of the network over the same samples
    backbone.eval()
    with torch.no_grad():
        start = time.perf_counter()
        features = torch.cat([backbone(part) for part in x.split(128)])
        once = time.perf_counter() - start
    labelled, val = Labelled(features[:1024], y[:1024]), Labelled(features[1024:], y[1024:])
    start = time.perf_counter()
    LinearProbe(learning_rates=20).fit(labelled, CLASSES, val)
    probes = time.perf_counter() - start
    print(f"one pass forward {once:.2f} s, twenty probes of 50 epochs on its features {probes:.2f} s")
    content = {
        "network": f"resnet18 at {SIDE} pixels, batch {BATCH}",
        "steps": options.steps,
        "seconds": {"fine-tuning": ours, "plain loop": theirs},
        "images_per_second": {
            "fine-tuning": images / statistics.median(ours),
            "plain": images / statistics.median(theirs),
        },
        "ratio": ratio,
        "first_step_differs_by": away,
        "one_pass_forward_seconds": once,
        "twenty_probes_seconds": probes,
        "machine": machine(torch.device("cpu")),
    }  # fmt: skip
    (Path(__file__).parent / "results" / "fine_tuning_speed.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
