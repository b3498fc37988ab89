"""The command itself: what wins, what is saved, and what a mistake is answered."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml

from conftest import ROOT, best_checkpoint, results
from metatransfer import MAMLModule
from metatransfer.cli import main

MAML, PROTONET = ROOT / "configs" / "maml.yaml", ROOT / "configs" / "protonet.yaml"


def complaint(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr().err.strip().splitlines()
    message = captured[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in "".join(captured)
    return message


# ---- what wins


def test_command_line_wins_over_the_checkpoint(cli, monkeypatch):
    """PITFALLS 16: Lightning would test with the checkpoint's inner_steps."""
    run = cli("fit", MAML, "--trainer.limit_train_batches=1")
    checkpoint = best_checkpoint(run)
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["inner_steps"] == 3
    used = []
    adapt = MAMLModule._adapt
    monkeypatch.setattr(MAMLModule, "_adapt", lambda self, x, y, steps: used.append(steps) or adapt(self, x, y, steps))
    tested = cli("test", MAML, "--ckpt_path", checkpoint, "--model.inner_steps", 10)
    assert max(used) == 10
    answer = results(tested)
    assert answer["protocol"]["method"]["inner_steps"] == 10
    assert "method.inner_steps: 3 -> 10" in answer["protocol_differences"]
    at_three = results(cli("test", MAML, "--ckpt_path", checkpoint))
    assert at_three["protocol_differences"] == []
    assert answer["metrics"]["loss"]["value"] != at_three["metrics"]["loss"]["value"]


def test_configs_compose_and_are_saved(cli, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {inner_lr: 0.123, optimizer: {class_path: SGD, init_args: {lr: 0.05}}}}")
    scheduler = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2"]
    run = cli("fit", MAML, "--config", overlay, *scheduler, "--trainer.limit_train_batches=1")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    arguments = saved["model"]["init_args"]
    assert arguments["inner_lr"] == 0.123
    assert arguments["optimizer"]["class_path"] == "torch.optim.SGD"
    assert arguments["lr_scheduler"]["init_args"]["step_size"] == 2
    assert arguments["train_inner_steps"] == 1  # of the first file
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert state["lr_schedulers"][0]["step_size"] == 2


def test_number_of_outputs_follows_the_data(cli):
    run = cli("fit", MAML, "--data.num_ways=7", "--trainer.limit_train_batches=1")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["num_outputs"] == 7


def test_runs_without_logger_do_not_write_over_each_other(cli, tmp_path):
    """PITFALLS 22: without a logger the saved config would land in the working folder and stop the next run."""
    first = cli("fit", PROTONET, "--trainer.logger=false", "--trainer.limit_train_batches=1")
    second = cli("fit", PROTONET, "--trainer.logger=false", "--trainer.limit_train_batches=1")
    assert first != second
    for run in (first, second):
        assert {"config.yaml", "results.json", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs"}


def test_overfitting_sees_the_same_batch_in_every_epoch(cli, monkeypatch):
    seen = []
    step = MAMLModule.training_step
    monkeypatch.setattr(
        MAMLModule,
        "training_step",
        lambda self, batch, batch_idx: seen.append(batch.support_x) or step(self, batch, batch_idx),
    )
    cli("fit", MAML, "--trainer.overfit_batches=1", "--trainer.max_epochs=3")
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_turning_things_off(cli):
    run = cli("fit", PROTONET, "--trainer.enable_checkpointing=false", "--trainer.limit_train_batches=1")
    assert results(run)["checkpoint"] is None
    assert not (run / "checkpoints").exists()
    cli("fit", PROTONET, "--trainer.fast_dev_run=true")
    assert cli("fit", PROTONET, "--trainer.barebones=true", "--trainer.log_every_n_steps=0") is not None


def test_a_users_own_classes_by_import_path(cli, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from metatransfer import GlyphEpisodes, MAMLModule, MLP\n"
        "class MyBackbone(MLP):\n    pass\n"
        "class MyMethod(MAMLModule):\n    pass\n"
        "class MyEpisodes(GlyphEpisodes):\n    pass\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command itself looks where it is called
    run = cli(
        "fit", MAML, "--model=mine.MyMethod", "--data=mine.MyEpisodes", "--model.backbone=mine.MyBackbone",
        "--model.backbone.in_shape=[1,28,28]", "--model.optimizer=Adam", "--trainer.limit_train_batches=1",
    )  # fmt: skip
    assert results(run)["protocol"]["method"]["name"] == "MyMethod"
    assert results(run)["protocol"]["data"]["data"] == "MyEpisodes"


def test_validation_only_data_and_regression_free_monitor(cli):
    run = cli("fit", PROTONET, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min", "--trainer.max_epochs=2")
    answer = results(run)
    assert answer["protocol"]["selection"] == "min val/loss"
    chosen = torch.load(best_checkpoint(run), weights_only=True)["callbacks"]
    history = next(state["history"] for name, state in chosen.items() if "Report" in name)
    assert answer["metrics"]["loss"]["value"] <= min(entry["metrics"]["loss"]["value"] for entry in history) + 1e-9


# ---- what a mistake is answered (one line each)

# ruff: noqa: E501
MISTAKES = [
    (["fit", "--config", MAML, "--model", "ProtoNt"], ["unknown class 'ProtoNt'", "Did you mean ProtoNetModule?", "MAMLModule"]),
    (["fit", "--config", MAML, "--model.backbone", "Conv5"], ["unknown class 'Conv5' for backbone", "Conv4?", "ResNet12"]),
    (["fit", "--config", MAML, "--model.optimizer", "Adm"], ["unknown class 'Adm' for optimizer", "Did you mean Adam?"]),
    (["fit", "--config", MAML, "--data", "GlyphEpisods"], ["unknown class 'GlyphEpisods'", "GlyphEpisodes?"]),
    (["fit", "--config", MAML, "--model.inner_stps", "3"], ["MAMLModule has no argument 'inner_stps'", "inner_steps?"]),
    (["fit", "--config", MAML, "--model.backbone.hidden", "3"], ["Conv4 has no argument 'hidden'", "hidden_channels"]),
    (["fit", "--config", MAML, "--model.lr_scheduler", "ReduceLROnPlateau"], ["several classes are called ReduceLROnPlateau", "lightning.pytorch.cli.ReduceLROnPlateau"]),
    (["fit", "--config", MAML, "--trainer.precision", "bf16-mixd"], ["trainer.precision must be", "Did you mean bf16-mixed?"]),
    (["fit", "--config", ROOT / "configs"], ["configs' is a folder"]),
    (["fit", "--config", MAML, "--modl.inner_steps", "3"], ["unknown option", "Did you mean --model.inner_steps?"]),
    (["fit", "--config", MAML, "--trainr.max_epochs", "3"], ["unknown option '--trainr.max_epochs'", "--trainer.max_epochs?"]),
    (["fit", "--config", MAML, "--model.inner_steps", "x"], ["inner_steps must be an integer", "'x'"]),
    (["fit", "--config", MAML, "--trainer.max_epochs", "x"], ["trainer.max_epochs must be an integer", "'x'"]),
    (["fit", "--config", MAML, "--model.batch_norm", "suport"], ["batch_norm must be one of", "Did you mean support?"]),
    (["fit", "--config", MAML, "--model.inner_lr", "0"], ["inner_lr must be a number above 0"]),
    (["fit", "--config", MAML, "--model", "not.there.Thing"], ["no module 'not'"]),
    (["fit", "--config", "nope.yaml"], ["nope.yaml' does not exist"]),
    (["fitt", "--config", MAML], ["unknown command 'fitt'", "Did you mean fit?"]),
    (["fit"], ["data and model missing", "--config"]),
    ([], ["no command given"]),
    (["test", "--config", MAML, "--ckpt_path", "nope.ckpt"], ["checkpoint 'nope.ckpt' does not exist"]),
    (["predict", "--config", PROTONET], ["predict needs two folders"]),
    (["predict", "--config", PROTONET, "--data.support=a", "--data.query=b"], ["support folder 'a' does not exist"]),
    (["fit", "--config", MAML, "--data.num_ways", "5000"], ["GlyphEpisodes (train split) has", "5000-way"]),
    (["fit", "--config", MAML, "--data.num_shots", "30"], ["GlyphEpisodes (train split): class", "20 samples", "30 shots"]),
    (["fit", "--config", MAML, "--data.num_ways", "0"], ["num_ways must be a number above 0"]),
    (["fit", "--config", MAML, "--data.eval_num_ways", "7"], ["labels from 0 to 6", "num_outputs=5"]),
    (["fit", "--config", MAML, "--data.train_episodes", "4"], ["train_episodes=4 is less than one meta-batch"]),
    (["fit", "--config", MAML, "--model.backbone.in_channels", "3"], ["(3, 28, 28), but the data has (1, 28, 28)"]),
    (["fit", "--config", MAML, "--model.backbone.image_size", "8"], ["Conv4 cannot process samples of shape (1, 8, 8)"]),
    (["fit", "--config", MAML, "--checkpoint.monitor", "val/acuracy"], ["'val/acuracy' is not logged", "Did you mean val/accuracy?"]),
    (["fit", "--config", MAML, "--trainer.barebones", "true"], ["trainer: ", "barebones"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(map(str, a[-2:])) for a, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_sentence(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["fit"] and len(arguments) > 1:
        arguments = [*arguments, "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false",
                     "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=1",
                     "--data.val_episodes=2"]  # fmt: skip
        if "nope.yaml" in arguments or ROOT / "configs" in arguments:
            arguments = arguments[:3]
    message = complaint(capsys, *arguments)
    for words in expected:
        assert words in message
    assert not list(tmp_path.rglob("*.ckpt")), "a refused run left a checkpoint"


def test_a_checkpoint_of_another_network_is_refused(cli, capsys):
    checkpoint = best_checkpoint(cli("fit", MAML, "--trainer.limit_train_batches=1"))
    other = ["test", "--config", MAML, "--ckpt_path", checkpoint, "--trainer.accelerator=cpu"]
    message = complaint(capsys, *other, "--model.backbone.hidden_channels=16")
    assert "do not fit this MAMLModule" in message
    assert "backbone.layers.0.weight (32, 1, 3, 3) instead of (16, 1, 3, 3)" in message


def test_a_file_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"not a checkpoint")
    assert "cannot be read as a checkpoint" in complaint(capsys, "test", "--config", MAML, "--ckpt_path", bad)
    torch.save({"weights": 1}, bad)
    assert "holds no 'state_dict'" in complaint(capsys, "test", "--config", MAML, "--ckpt_path", bad)


def test_an_unwritable_folder_is_refused(capsys, tmp_path, monkeypatch):
    # root may write anywhere, so the answer of the operating system is given here
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: allowed(path, mode) and not (mode & os.W_OK))
    message = complaint(capsys, "fit", "--config", MAML, "--trainer.default_root_dir", tmp_path / "runs")
    assert "cannot be written" in message


def test_a_file_in_the_place_of_the_folder_is_refused(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    message = complaint(capsys, "fit", "--config", MAML, "--trainer.default_root_dir", tmp_path / "taken" / "runs")
    assert "is a file, not a folder" in message


# ---- entry points


def test_main_returns_none_and_the_module_is_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "metatransfer", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in ("fit", "validate", "test", "predict"):
        assert command in shown


def test_console_scripts_are_declared():
    from importlib.metadata import entry_points

    scripts = {point.name: point.value for point in entry_points(group="console_scripts")}
    assert scripts["lightning"] == scripts["metatransfer"] == "metatransfer.cli:main"


def test_print_config(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(MAML), "--print_config"])
    assert not stop.value.code
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["class_path"].endswith("MAMLModule")
    assert shown["checkpoint"]["monitor"] == "val/accuracy"
