"""``lightning explain``: the start is built again bit by bit, and the results are written."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import messages
from conftest import ROOT, best_checkpoint
from metatransfer import Backbone, Conv4
from metatransfer.cli import main
from metatransfer.cli.run_start import rebuilt
from metatransfer.methods.checkpoints import read_checkpoint
from metatransfer.module_keys import weights_key

PROTONET, FINETUNE = ROOT / "configs" / "protonet.yaml", ROOT / "configs" / "finetune.yaml"
BRIEF = ["--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
KEEP = ["--trainer.callbacks=test_explain_command.KeepStart"]


class KeepStart(Callback):
    """Saves the weights that a training starts from."""

    def on_fit_start(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), "start.pt")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "cli" / "commands"))


def complaint(capsys, *typed):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in typed])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().removeprefix("error: ")


def start_of(run, checkpoint):
    return rebuilt(checkpoint, read_checkpoint(checkpoint), None, []).module.state_dict()


def test_weights_from_a_file_and_a_new_head(cli, tmp_path, capsys):
    run = cli("fit", FINETUNE, *BRIEF, *KEEP, small=False)
    start = torch.load(tmp_path / "start.pt")
    again = start_of(run, best_checkpoint(run))
    assert all(torch.equal(again[name], value) for name, value in start.items())
    capsys.readouterr()
    main(["explain", "--ckpt_path", "best", "--samples", "100"])
    told = capsys.readouterr().out
    assert "built again with the same bits" in told
    assert "Seen on 100 validation samples; probe: ridge classifier" in told
    written = json.loads((run / "explanation.json").read_text())
    assert [one["name"] for one in written["layers"]] == ["layers.0", "layers.4", "layers.8", "layers.12", "head"]
    assert written["conclusion"] in told
    with (run / "explanation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["moved"]) for row in rows] == [one["moved"] for one in written["layers"]]
    with Image.open(run / "figures" / "explanation.png") as image:
        assert min(image.size) > 300
    events = EventAccumulator(str(run)).Reload()
    assert "explanation" in events.Tags()["images"]


@pytest.mark.slow
def test_random_weights_and_a_run_that_was_resumed(cli, tmp_path, capsys):
    first = cli("fit", PROTONET, *KEEP)
    start = torch.load(tmp_path / "start.pt")
    run = cli("fit", PROTONET, "--trainer.max_epochs=2", "--ckpt_path", first / "checkpoints" / "last.ckpt")
    again = start_of(run, run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(again[name], value) for name, value in start.items())
    output = tmp_path / "elsewhere"
    capsys.readouterr()
    # other data of the same kind, and other tasks
    main(["explain", "--ckpt_path", "last", "--output", str(output), "--split", "test", "--samples", "30",
          "--data.task.num_ways=3", "--data.eval_task.num_ways", "3", "--data.source", "TypesetDigits"])  # fmt: skip
    assert "of 4 test tasks" in capsys.readouterr().out
    assert (output / "explanation.json").exists()
    assert not (run / "explanation.json").exists()


@pytest.fixture
def moved(runs, tmp_path):
    """A copy of a run, to be changed."""
    return shutil.copytree(runs("fit", PROTONET, "--trainer.limit_train_batches=1"), tmp_path / "moved")


class Lazy(Backbone):
    """Has weights after its first batch only."""

    def __init__(self):
        super().__init__()
        self.layer, self.out_features = torch.nn.LazyLinear(4), 4

    def forward(self, x):
        return self.layer(x.flatten(1))


MISTAKES = ["seed", "config", "section", "record", "lazy", "none", "shape", "split", "elsewhere", "output"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake, moved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint, more = moved / "checkpoints" / "last.ckpt", []
    config = moved / "config.yaml"
    described = yaml.safe_load(config.read_text())
    if mistake == "seed":
        config.write_text(yaml.safe_dump(described | {"seed_everything": 1}))
    elif mistake == "config":
        config.unlink()
    elif mistake == "section":
        config.write_text(yaml.safe_dump({"model": described["model"]}))
    elif mistake in ("record", "lazy"):
        if mistake == "lazy":
            described["model"]["init_args"]["backbone"] = {"class_path": "test_explain_command.Lazy"}
            config.write_text(yaml.safe_dump(described))
        content = torch.load(checkpoint, weights_only=True)
        del content["started_from"]
        torch.save(content, checkpoint)
    elif mistake == "elsewhere":
        checkpoint, more = checkpoint.rename(tmp_path / "m.ckpt"), ["--config", config]
    elif mistake == "output":
        config.unlink()  # checked before the configuration is read
        more = ["--output", checkpoint / "results"]
    elif mistake == "none":
        checkpoint = "best"
        shutil.rmtree(moved)
    elif mistake == "shape":
        (tmp_path / "rows.csv").write_text("length,label\n" + "".join(f"{n},kind {n % 9}\n" for n in range(360)))
        more = ["--data.source", "rows.csv"]
    else:
        more = ["--split", "train"]
    message = complaint(capsys, "explain", "--ckpt_path", checkpoint, *more)
    messages.keep(message.replace(str(tmp_path), "<folder>").splitlines()[-1])


def test_a_checkpoint_elsewhere_is_explained_into_the_given_folder(moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = (moved / "checkpoints" / "last.ckpt").rename(tmp_path / "m.ckpt")
    main(["explain", "--ckpt_path", str(checkpoint), "--config", str(moved / "config.yaml"), "--output", "here"])
    assert (tmp_path / "here" / "explanation.json").exists()


def test_the_hash_of_weights_changes_with_every_bit_and_name():
    torch.manual_seed(0)
    network = Conv4(hidden_channels=4)
    key = weights_key(network)
    with torch.no_grad():
        weight = network.layers[0].weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    assert weights_key(network) != key
    torch.manual_seed(0)
    assert weights_key(Conv4(hidden_channels=4)) == key
    assert weights_key(torch.nn.Sequential(Conv4(hidden_channels=4))) != key
    assert weights_key(torch.nn.LazyLinear(3)) is None
    assert weights_key(torch.nn.Linear(2, 3, device="meta")) is None
