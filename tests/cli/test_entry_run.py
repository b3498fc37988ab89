"""The run of an entry: its configuration, its scores, its failures."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import messages
from metatransfer import Division, LabelledDataModule, Table
from metatransfer.cli.entries import Candidate
from metatransfer.cli.entry_run import Job, _measured, _units, configured, run_job
from metatransfer.errors import UserError
from metatransfer.experiments.ranking import Outcome


def job(folder, **changes):
    given = {"name": "a", "task": "method", "config": {}, "arguments": (), "seed": 0, "folder": folder}
    return Job(**(given | changes))


def data():
    return SimpleNamespace(info=lambda: SimpleNamespace(num_targets=None))


def test_an_entry_is_trained_in_one_process(tmp_path):
    settings = configured(Candidate.parse("protonet"), {}, 0, {}, {})["trainer"]
    assert (settings["devices"], settings["num_nodes"]) == (1, 1)
    assert settings["min_epochs"] is settings["min_steps"] is None
    with pytest.raises(UserError) as error:
        _measured(job(tmp_path), SimpleNamespace(world_size=2), None, data())
    assert "in one process" in messages.keep(str(error.value))


def a_trainer(logits, *labels):
    """A Trainer whose test passes these outputs on, after no training."""
    found = SimpleNamespace(world_size=1, callbacks=[], checkpoint_callback=None, global_step=0, current_epoch=0)
    found.fit = lambda *_, **__: None
    found.test = lambda *_, **__: found.callbacks[-1].update(torch.tensor(logits), torch.tensor(labels), torch.ones(1))
    return found


def test_a_diverged_entry_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("metatransfer.cli.entry_run.run_folder", lambda _: tmp_path)
    (outcome,) = _measured(job(tmp_path), a_trainer([[1.0, 2.0], [3.0, 2.0]], 1, 1), None, data())
    assert outcome.scores == [1.0, 0.0]
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="lower the learning rate") as error:
            _measured(job(tmp_path), a_trainer([[1.0, 2.0], [wrong, wrong]], 1, 0), None, data())
    messages.keep(str(error.value))


def test_a_failed_run_is_run_again(tmp_path, monkeypatch):
    one, works = job(tmp_path), []
    found = Outcome("a", 0, [1.0], curve=[])

    def run(job):
        if not works:
            raise UserError("timm is missing.")
        return [found]

    monkeypatch.setattr("metatransfer.cli.entry_run._run", run)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as where a file is open in another program
    assert run_job(one)[0].failure == "timm is missing."
    assert json.loads((tmp_path / "outcomes.json").read_text())[0]["failure"]
    assert one.stored() == []
    works.append(True)
    assert run_job(one) == one.stored() == [found]


def test_rows_of_a_table_are_the_same_units_for_all_seeds(tmp_path):
    rows = "".join(f"{number},{number**2},{number % 2}\n" for number in range(40))
    (tmp_path / "rows.csv").write_text("a,b,label\n" + rows)
    source, scores = Table(str(tmp_path / "rows.csv")), SimpleNamespace(found={"method": [1.0] * 8})
    units, encoded = [], []
    for seed, divided in ((0, 0), (1, 0), (1, 1)):
        data = LabelledDataModule(source, labels_per_class=2, seed=seed, division=Division(seed=divided))
        units.append(_units(data, scores))
        encoded.append(data.content_key("test"))
    assert units[0] == units[1] != units[2]
    assert encoded[0] != encoded[1]
