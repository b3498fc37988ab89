"""What the run of an entry depends on."""

from __future__ import annotations

import sys

import pytest
import torch

from metatransfer.cli.entries import Candidate, _fingerprint
from metatransfer.cli.entry_content import own_content
from metatransfer.data.sources import Collection, TaskGenerator

CODE = "import torch\n\n\nclass Part(torch.nn.Identity):\n    pass\n"


@pytest.mark.parametrize("changed", ["weights.pt", "head.pt", "own_part_of_a_model.py"])
def test_files_and_own_code_count_with_their_content(changed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_part_of_a_model", raising=False)
    (tmp_path / "own_part_of_a_model.py").write_text(CODE)
    for name in ("weights.pt", "head.pt", "samples.csv"):
        (tmp_path / name).write_text("first")
    part = {"class_path": "own_part_of_a_model.Part"}
    model = {"class_path": "ProtoNetModule", "init_args": {"backbone": {"init_args": {"weights": "weights.pt"}}}}
    data = {"source": "samples.csv", "processing": {"augmentation": [part]}}
    one = Candidate("one", {"model": model, "data": data}, ("--model.head=head.pt", "--a", "torch.nn"), torch.nn.Module)
    before = own_content(one)
    assert set(before) == {"weights.pt", "head.pt", "own_part_of_a_model.Part"}
    assert own_content(one) == before
    (tmp_path / changed).write_text(CODE + "\n# longer\n")
    assert own_content(one) != before


def test_files_of_a_named_folder_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "model.safetensors").write_text("first")
    one = Candidate("one", {"model": {"init_args": {"name": "encoder"}}}, (), torch.nn.Module)
    before = own_content(one)
    (tmp_path / "encoder" / "model.safetensors").write_text("again trained")
    assert own_content(one) != before


def test_a_script_with_the_name_of_a_metric_is_not_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_script.py").write_text("raise SystemExit")
    assert own_content(Candidate("one", {"monitor": "own_script.loss"}, (), torch.nn.Module)) == {}


def test_names_with_dots_are_no_code():
    texts = {"a": "nowhere.at.all", "b": "0.5", "c": "https://example.org/a.b", "d": "math.sqrt", "e": "x" * 5000}
    assert own_content(Candidate("one", texts, (), torch.nn.Module)) == {}


class Generated(Collection):
    def __init__(self, version):
        self.version = version

    def parts(self):
        class Tasks(TaskGenerator):
            def generate(self, keys, num_shots, num_queries, device):
                raise NotImplementedError

        return {"all": Tasks()}

    def protocol(self):
        return {"version": self.version}


def test_generated_tasks_have_a_fingerprint():
    first, again, other = (_fingerprint({}, [Generated(version)]) for version in (1, 1, 2))
    assert first == again != other
