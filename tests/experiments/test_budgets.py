"""Budgets: what a run may spend is what its twins may spend."""

from __future__ import annotations

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from metatransfer.experiments.comparing import train_entries
from metatransfer.experiments.training import Budget, beside_the_run, spent, train
from metatransfer.methods.twins import Entry


class Line(pl.LightningModule):
    """Regression on one variable."""

    def __init__(self, plateau=False):
        super().__init__()
        self.line, self.plateau, self.validated = torch.nn.Linear(1, 1), plateau, 0

    def training_step(self, batch):
        return self.line(batch[0]).square().mean()

    def validation_step(self, batch):
        self.validated += 1
        self.log("val/loss", self.line(batch[0]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.plateau:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class Ones(pl.LightningDataModule):
    def __init__(self, count=12):
        super().__init__()
        self.count = count

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.count, 1)), 4)

    val_dataloader = train_dataloader


def run(module, **arguments):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
                "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
    found = pl.Trainer(**(settings | {"max_epochs": 2} | arguments))
    found.fit(module, datamodule=Ones())
    return found


def test_a_budget_holds_all_limits_of_a_run():
    found = Budget.of(run(Line(), max_time="00:01:00:00", accumulate_grad_batches=2, gradient_clip_val=0.5))
    assert (found.max_epochs, found.max_steps, found.max_time) == (2, -1, timedelta(hours=1))
    assert found.settings["accumulate_grad_batches"] == 2
    assert found.settings["gradient_clip_val"] == 0.5
    assert found.card() == {"max_epochs": 2, "max_steps": -1, "max_seconds": 3600.0}
    assert Budget.of(run(Line())).card()["max_seconds"] is None


@pytest.mark.parametrize(("plateau", "validates"), [(False, False), (True, False), (False, True)])
def test_trainings_validate_only_where_it_is_needed(plateau, validates):
    budget = Budget.of(run(Line(plateau)), validates=validates)
    module = Line(plateau)
    train(module, Ones(), seed=0, budget=budget)
    assert bool(module.validated) == (plateau or validates)


def test_time_ends_a_training():
    budget = Budget(max_epochs=-1, max_time=timedelta(seconds=0.2), settings={"accelerator": "cpu"})
    assert 0 < spent(train(Line(), Ones(), seed=0, budget=budget))["batches"] < 10**6


@pytest.mark.parametrize("count", [4, 12, 40])
def test_other_data_are_learned_from_in_as_many_steps(count):
    entries = {"one": Entry(Line), "other": Entry(Line, lambda: Ones(count))}
    for accumulated in (1, 2):
        budget = Budget(2, settings={"accelerator": "cpu", "accumulate_grad_batches": accumulated})
        found = {name: cost for name, _, cost in train_entries(entries, Ones(), seed=0, budget=budget)}
        assert found["one"]["epochs"] == 2
        assert found["one"]["steps"] == found["other"]["steps"] == {1: 6, 2: 4}[accumulated]
    given = train_entries({"other": entries["other"]}, Ones(), seed=0, budget=budget, steps=5)
    assert next(given)[2]["steps"] == 5


def test_nothing_is_left_of_a_training():
    data, state = Ones(), torch.get_rng_state()
    data.trainer = attached = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with beside_the_run(data):
        train(Line(), data, seed=3, budget=Budget(1, settings={"accelerator": "cpu"}))
    assert data.trainer is attached
    assert torch.equal(torch.get_rng_state(), state)
