"""Memory networks on bAbI tasks with 10,000 training questions each, every task on its own, one thread.

The settings are those of configs/babi/mem_n2n.yaml; easy tasks need fewer epochs. Seeds differ: the run with the least
validation loss counts, which is chosen without the test, and all test accuracies stand beside it. The published errors
are those of the best of 10 runs of the end-to-end memory network.

python benchmarks/babi.py --root DIR --tasks 1 4 5 15 --restarts 3

DIR is the folder en-10k of bAbI v1.2.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml
from torch.optim.lr_scheduler import StepLR

from metatransfer import Babi, LabelledDataModule, MemN2NModule
from metatransfer.callbacks.run.report import machine

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "configs" / "babi" / "mem_n2n.yaml").read_text())
RESULTS = Path(__file__).parent / "results" / "babi.json"


def served(root: str, task: int) -> LabelledDataModule:
    """The questions of a task."""
    return LabelledDataModule(Babi(root, task), batch_size=32, eval_batch_size=256)


def made(data: LabelledDataModule, epochs: int, changes: dict[str, object]) -> MemN2NModule:
    """The network of the configuration; the rate is halved after each third of the epochs."""
    given = dict(CONFIG["model"]["init_args"])
    adam = partial(torch.optim.Adam, **given.pop("optimizer")["init_args"])
    del given["lr_scheduler"]
    steps = partial(StepLR, step_size=max(1, -(-epochs // 3)), gamma=0.5)
    info = data.info()
    return MemN2NModule(info.num_classes, info.vocabulary_size, optimizer=adam, lr_scheduler=steps, **given | changes)


def trained(root: str, task: int, seed: int, epochs: int, changes: dict[str, object]) -> dict[str, float]:
    """Validation loss, test accuracy in percent and seconds of training of one run."""
    data = served(root, task)
    data.seed = seed
    pl.seed_everything(seed, verbose=False)
    module = made(data, epochs, changes)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        gradient_clip_val=CONFIG["trainer"]["gradient_clip_val"], enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    taken = time.perf_counter() - start
    loss = float(trainer.callback_metrics["val/loss"])
    accuracy = 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"])
    return {"val_loss": round(loss, 4), "accuracy": round(accuracy, 2), "seconds": round(taken, 1)}


def main() -> None:
    """Writes results/babi.json; tasks that were measured before are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 5, 15])
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=CONFIG["trainer"]["max_epochs"])
    parser.add_argument("--tying", default="adjacent")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for task in options.tasks:
        changes = {"tying": options.tying}
        runs = [trained(options.root, task, seed, options.epochs, changes) for seed in range(options.restarts)]
        best = min(runs, key=lambda run: run["val_loss"])
        result["rows"][f"task {task}, {options.tying}"] = {
            "accuracy": best["accuracy"],
            "epochs": options.epochs,
            "runs": runs,
        }
        print(f"task {task}, {options.tying}: {best['accuracy']} % {runs}", flush=True)
        RESULTS.write_text(json.dumps(result | {"machine": machine(torch.device("cpu"))}, indent=2) + "\n")


if __name__ == "__main__":
    main()
