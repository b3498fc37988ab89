"""What all tests share: few threads, a clean random state, a small command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from contract import wraps_episodes
from metatransfer.cli import main

ROOT = Path(__file__).resolve().parents[1]
SHRINK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL_DATA = [
    "--data.episodes.train=12",
    "--data.episodes.val=6",
    "--data.episodes.test=6",
    "--data.episodes.per_batch=2",
    "--data.task.num_queries=2",
    "--data.eval_task.num_queries=2",
]
# six batches of an epoch, as the episodes above make
SMALL_BATCHES = ["--data.batch_size=4", "--trainer.limit_train_batches=6"]
SMALL_RUN = ["--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def _quiet_and_reproducible():
    # the suite's networks are tiny: more threads only wait for each other
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        yield


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs the real command in an empty folder; returns the run's folder for ``fit``, ``validate`` and ``test``."""
    monkeypatch.chdir(tmp_path)

    def run(command, config, *arguments, small=True):
        extra = [*SHRINK, *(small_data(config) if small else []), *(SMALL_RUN if small else [])]
        main([command, "--config", str(config), *extra, *map(str, arguments)])
        return latest_run(tmp_path)

    return run


def small_data(config):
    """Few episodes, wherever the configuration has them."""
    if not wraps_episodes(Path(config)):
        return SMALL_DATA
    return [argument.replace("--data.", "--data.episodes.") for argument in SMALL_DATA] + SMALL_BATCHES


def latest_run(root):
    runs = (root / "lightning_logs").glob("version_*")
    return max(runs, key=lambda run: int(run.name.removeprefix("version_")), default=None)


def results(run):
    return json.loads((run / "results.json").read_text())


def best_checkpoint(run):
    return next(path for path in (run / "checkpoints").glob("epoch*.ckpt"))
