"""Trains entries on the same budget and evaluates them on the same samples, for several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule

from metatransfer.data_info import ServesDomains, ServesSamples
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget, Evaluated, Spent, beside_the_run, evaluate, spent, train
from metatransfer.functional.losses import episode_scores
from metatransfer.methods.base import MethodModule
from metatransfer.methods.twins import Comparison, Entry


class Trained(NamedTuple):
    """An entry after training, with its last weights."""

    name: str
    module: MethodModule
    spent: Spent


class Scores(NamedTuple):
    """Results of entries for one seed: the compared metric, and the cost of each training."""

    values: dict[str, float]
    spent: dict[str, Spent]


def train_entries(
    entries: Mapping[str, Entry], data: LightningDataModule, *, seed: int, budget: Budget, steps: int | None = None
) -> Iterator[Trained]:
    """Trains entries one after the other on the same budget.

    Entries with their own data have epochs of another length; they take as many optimiser steps as the first entry.

    Yields:
        Each entry after its training.
    """
    for name, entry in entries.items():
        learner = entry.module()
        served, limits = (data, budget) if entry.data is None else (entry.data(), budget.in_steps(steps))
        found = spent(train(learner, served, seed=seed, budget=limits))
        steps = steps or found["steps"]
        yield Trained(name, learner, found)


def measure(
    entries: Mapping[str, Entry],
    data: LightningDataModule,
    *,
    metrics: Mapping[str, str],
    seed: int,
    budget: Budget,
    split: Evaluated = "test",
    baselines: bool = False,
) -> Scores:
    """Trains and evaluates entries for one seed."""
    scores = Scores({}, {})
    for one in train_entries(entries, data, seed=seed, budget=budget):
        scores.values[one.name] = evaluate(one.module, data, split, budget)[metrics[split]]
        scores.spent[one.name] = one.spent
    if baselines:
        scores.values.update(_baselines(one.module, data, split))
    return scores


def measure_twins(
    module: MethodModule,
    data: LightningDataModule,
    *,
    seed: int,
    budget: Budget,
    split: Evaluated = "test",
    baselines: bool = False,
    leave_out: tuple[str, ...] = (),
) -> Scores:
    """Trains an untrained method and its twins; the seed determines weights, divisions, labels and order.

    Data that cannot be divided again are the same for all seeds. For the other arguments, see :func:`measure`.
    """
    assert module.comparison is not None
    served: Any = data.reseeded(seed) if isinstance(data, ServesSamples | ServesDomains) else data
    entries = {name: one for name, one in module.twins(served, seed).items() if name not in leave_out}
    return measure(
        entries, served, metrics=module.comparison.metrics, seed=seed, budget=budget, split=split, baselines=baselines
    )


def twins_over_seeds(
    module: MethodModule,
    data: LightningDataModule,
    *,
    seeds: Iterable[int],
    budget: Budget,
    split: Evaluated = "test",
    baselines: bool = False,
) -> list[Scores]:
    """:func:`measure_twins` for several seeds, without side effects on random numbers, data module and logs."""
    with beside_the_run(data):
        return [
            measure_twins(module, data, seed=seed, budget=budget, split=split, baselines=baselines) for seed in seeds
        ]


def by_entry(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """The values of each entry, in the order of the seeds."""
    return {name: [one.values[name] for one in scores] for name in scores[0].values}


def intervals(scores: Sequence[Scores], comparison: Comparison) -> dict[str, Interval]:
    """Mean and confidence interval of each entry, and of the ``gain``, paired by seed."""
    values = by_entry(scores)
    gain = Interval.of_gain(values[comparison.own], values[comparison.reference])
    return {name: Interval.of(one) for name, one in values.items()} | {"gain": gain}


def _baselines(module: MethodModule, data: LightningDataModule, split: Evaluated) -> dict[str, float]:
    """Scores of the baselines on the batches of the last evaluation."""
    trainer = module.trainer
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    batches = int((trainer.num_test_batches if split == "test" else trainer.num_val_batches)[0])
    found = {}
    for name, baseline in module.baselines().items():
        same: Any = itertools.islice(loader, min(len(loader), batches))
        right = [episode_scores(baseline(batch).unsqueeze(1), batch.y.unsqueeze(1)) for batch in same]
        found[name] = float(torch.cat(right).mean())
    return found
