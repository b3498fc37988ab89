"""What a run is compared with: trainings beside it, over several seeds."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

Evaluated = Literal["val", "test"]


class Interval(NamedTuple):
    """A mean over seeds.

    Attributes:
        values: one for each seed.
        mean: of them.
        ci95: half-width of its 95% interval by Student's t; ``None`` for one seed.
    """

    values: list[float]
    mean: float
    ci95: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Mean and interval of values."""
        from scipy.stats import t  # a second to import, which other runs need not pay

        number = len(values)
        mean = sum(values) / number
        if number < 2:
            return cls(list(values), mean, None)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
        return cls(list(values), mean, float(t.ppf(0.975, number - 1)) * spread / math.sqrt(number))

    def __str__(self) -> str:
        interval = f" ± {100 * self.ci95:.2f}" if self.ci95 is not None else ""
        return f"{100 * self.mean:.2f}{interval}"


def budget(trainer: Trainer, *, validate: bool = False) -> dict[str, Any]:
    """What a run may spend, for those that are compared with it.

    Args:
        trainer: of the run.
        validate: whether they need the validation split; a scheduler that waits for a metric always does.

    Returns:
        Arguments of a Trainer in one process.
    """
    device = trainer.strategy.root_device  # the module itself has left it after a fit
    plateau = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": 1 if device.index is None else [device.index],
        "precision": trainer.precision,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "limit_train_batches": trainer.limit_train_batches,
        "limit_test_batches": trainer.limit_test_batches,
        "limit_val_batches": trainer.limit_val_batches if plateau or validate else 0,
    }


def silent_trainer(settings: dict[str, Any]) -> Trainer:
    """A Trainer that writes and shows nothing.

    Args:
        settings: its arguments.

    Returns:
        The Trainer.
    """
    return Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **{"devices": 1} | settings,
    )  # fmt: skip


def train(
    learner: LightningModule,
    data: LightningDataModule,
    *,
    seed: int,
    settings: dict[str, Any],
) -> Trainer:
    """Trains a method beside a run.

    Args:
        learner: trained in place.
        data: what it learns from.
        seed: of all that is drawn on the way.
        settings: arguments of the Trainer: the budget.

    Returns:
        The Trainer.
    """
    seed_everything(seed, verbose=False)
    trainer = silent_trainer(settings)
    trainer.fit(learner, datamodule=data)
    return trainer


@contextlib.contextmanager
def beside_the_run(data: LightningDataModule) -> Iterator[None]:
    """What is trained inside leaves no trace: random numbers, the data module's Trainer and the logs.

    Args:
        data: of the run.
    """
    attached = data.trainer
    try:
        with _own_random_state(), _quiet():
            yield
    finally:
        data.trainer = attached


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """Random numbers and their seeds are afterwards as they were before."""
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
    """No talk of Trainers that the user did not start."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
