"""The run of an entry: its configuration, its scores, its failures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import messages
from metatransfer.cli.entries import Candidate
from metatransfer.cli.entry_run import Job, _measured, configured
from metatransfer.errors import UserError


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
