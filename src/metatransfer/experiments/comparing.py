"""Trains entries on the same budget and evaluates them on the same samples, for several seeds."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule

from metatransfer.data_info import ServesDomains, ServesSamples
from metatransfer.experiments.training import Budget, Evaluated, Spent, beside_the_run, evaluate, spent, train
from metatransfer.methods.base import MethodModule
from metatransfer.methods.twins import Entry


class Scores(NamedTuple):
    """Results of entries for one seed: the compared metric, the cost of each training, and the evaluated samples."""

    values: dict[str, float]
    spent: dict[str, Spent]
    samples: int | None = None

    @classmethod
    def of(cls, found: Mapping[str, Mapping[str, float]], spent: dict[str, Spent], metric: str) -> "Scores":
        """The scores from the logged metrics of each entry."""
        samples = next(iter(found.values()), {}).get(f"{metric.partition('/')[0]}/samples")
        return cls({name: one[metric] for name, one in found.items()}, spent, None if samples is None else int(samples))


def train_entries(
    entries: Mapping[str, Entry], data: LightningDataModule, *, seed: int, budget: Budget, steps: int | None = None
) -> Iterator[tuple[str, MethodModule, Spent]]:
    """Trains entries one after the other on the same budget.

    Entries with their own data have epochs of another length; they take as many optimiser steps as the first entry.

    Yields:
        The name of each entry, its module with the last weights, and the cost of its training.
    """
    for name, entry in entries.items():
        learner = entry.module()
        served, limits = (data, budget) if entry.data is None else (entry.data(), budget.in_steps(steps))
        found = spent(train(learner, served, seed=seed, budget=limits))
        steps = steps or found["steps"]
        yield name, learner, found


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
    """Trains and evaluates an untrained method and its twins; the seed determines weights, divisions, labels and order.

    Data that cannot be divided again are the same for all seeds. Random numbers, the data module and the logs of a run
    are left as they were.
    """
    assert module.comparison is not None
    found: dict[str, dict[str, float]] = {}
    costs: dict[str, Spent] = {}
    with beside_the_run(data):
        served: Any = data.reseeded(seed) if isinstance(data, ServesSamples | ServesDomains) else data
        entries = {name: one for name, one in module.twins(served, seed).items() if name not in leave_out}
        for name, learner, cost in train_entries(entries, served, seed=seed, budget=budget):
            found[name], costs[name] = evaluate(learner, served, split, budget), cost
        scores = Scores.of(found, costs, module.comparison.metrics[split])
        if baselines:
            scores.values.update(_baselines(learner, served, split))
    return scores


def by_entry(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """The values of each entry, in the order of the seeds."""
    return {name: [one.values[name] for one in scores] for name in scores[0].values}


def _baselines(module: MethodModule, data: LightningDataModule, split: Evaluated) -> dict[str, float]:
    """Scores of the baselines on the batches of the last evaluation."""
    trainer = module.trainer
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    batches = int((trainer.num_test_batches if split == "test" else trainer.num_val_batches)[0])
    found = {}
    for name, baseline in module.baselines().items():
        same: Any = itertools.islice(loader, min(len(loader), batches))
        scores = [module.evaluation.baseline_scores(module, baseline, batch) for batch in same]
        found[name] = float(torch.cat(scores).mean())
    return found
