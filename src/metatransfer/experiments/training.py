"""Training and evaluation beside a run, on a budget and without side effects."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Timer

Evaluated = Literal["val", "test"]


class Spent(TypedDict):
    """The cost of a training.

    Attributes:
        epochs: completed epochs.
        batches: training batches.
        steps: optimiser steps; for several optimisers that step in turn, training batches.
    """

    epochs: int
    batches: int
    steps: int


@dataclass(frozen=True)
class Budget:
    """The limits of each training in a comparison.

    Attributes:
        max_epochs: see Lightning's Trainer.
        max_steps: see Lightning's Trainer.
        max_time: see Lightning's Trainer.
        validates: whether to validate during training, as a scheduler that monitors a metric needs.
        settings: other arguments of the Trainer, for one process.
    """

    max_epochs: int | None = None
    max_steps: int = -1
    max_time: timedelta | None = None
    validates: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: Trainer, *, validates: bool = False) -> "Budget":
        """The budget of a run; it validates if asked to or if a scheduler needs it."""
        device = trainer.strategy.root_device  # after a fit, the module is on the CPU
        plateau = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        timer = next((one for one in trainer.callbacks if isinstance(one, Timer)), None)  # type: ignore[attr-defined]
        left = timer.time_remaining() if timer is not None else None
        same = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
        limits = tuple(f"limit_{split}_batches" for split in ("train", "val", "test"))
        return cls(
            max_epochs=trainer.max_epochs,
            max_steps=trainer.max_steps,
            max_time=timedelta(seconds=round(timer.time_elapsed() + left, 3)) if timer and left is not None else None,
            validates=validates or plateau,
            settings={
                "accelerator": "gpu" if device.type == "cuda" else device.type,
                "devices": 1 if device.index is None else [device.index],
                **{name: getattr(trainer, name) for name in same + limits},
            },
        )

    def in_steps(self, steps: int | None) -> "Budget":
        """The same budget with a number of optimiser steps instead of epochs; unchanged for ``None`` and 0."""
        return replace(self, max_epochs=-1, max_steps=steps) if steps else self

    def card(self) -> dict[str, Any]:
        """The limits as plain values, for reports."""
        seconds = self.max_time.total_seconds() if self.max_time is not None else None
        return {"max_epochs": self.max_epochs, "max_steps": self.max_steps, "max_seconds": seconds}


def silent_trainer(settings: Mapping[str, Any]) -> Trainer:
    """A Trainer without any output."""
    return Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **{"devices": 1, **settings},
    )  # fmt: skip


def train(module: LightningModule, data: LightningDataModule, *, seed: int, budget: Budget) -> Trainer:
    """Trains a method in place, with a seed for all random numbers of the training."""
    seed_everything(seed, verbose=False)
    limits = {"max_epochs": budget.max_epochs, "max_steps": budget.max_steps, "max_time": budget.max_time}
    trainer = silent_trainer({**budget.settings, **limits, **({} if budget.validates else {"limit_val_batches": 0})})
    trainer.fit(module, datamodule=data)
    return trainer


def evaluate(module: LightningModule, data: LightningDataModule, split: Evaluated, budget: Budget) -> dict[str, float]:
    """Evaluates a method, and returns the logged metrics."""
    trainer = silent_trainer(budget.settings)
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def spent(trainer: Trainer) -> Spent:
    """The cost of a fit."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    steps = trainer.global_step if trainer.lightning_module.automatic_optimization else batches
    return {"epochs": trainer.current_epoch, "batches": batches, "steps": steps}


@contextlib.contextmanager
def beside_the_run(data: LightningDataModule) -> Iterator[None]:
    """Within the block, training has no side effects on random numbers, the data module's Trainer and the logs."""
    attached = data.trainer
    try:
        with _own_random_state(), _quiet():
            yield
    finally:
        data.trainer = attached


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """Restores the state of all random number generators after the block."""
    seeds = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        for name, value in seeds.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences log messages below errors and all warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
