"""The command itself: what wins, what is saved, and what a mistake is answered."""

from __future__ import annotations

import os
import runpy
import shlex
import sys

import pytest
import torch
import yaml

import messages
from conftest import ROOT, best_checkpoint, command_line, results
from metatransfer import MAMLModule, ProtoNetModule
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


def test_command_line_wins_over_the_checkpoint(cli, runs, monkeypatch):
    """PITFALLS 16: Lightning would test with the checkpoint's inner.steps."""
    run = runs("fit", MAML, "--trainer.limit_train_batches=1")
    checkpoint = best_checkpoint(run)
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["inner"]["steps"] == 3
    used = []
    predict = MAMLModule.predict_tasks
    monkeypatch.setattr(
        MAMLModule, "predict_tasks", lambda self, state, x: used.append(state.steps) or predict(self, state, x)
    )
    tested = cli("test", MAML, "--ckpt_path", checkpoint, "--model.inner.steps", 10)
    assert max(used) == 10
    answer = results(tested)
    assert answer["protocol"]["method"]["inner_steps"] == 10
    assert "method.inner_steps: 3 -> 10" in answer["protocol_differences"]
    at_three = results(cli("test", MAML, "--ckpt_path", checkpoint))
    assert at_three["protocol_differences"] == []
    assert answer["metrics"]["loss"]["value"] != at_three["metrics"]["loss"]["value"]


def test_configs_compose_and_are_saved(cli, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {inner: {lr: 0.123}, optimizer: {class_path: SGD, init_args: {lr: 0.05}}}}")
    scheduler = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2"]
    run = cli("fit", MAML, "--config", overlay, *scheduler, "--trainer.limit_train_batches=1")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    arguments = saved["model"]["init_args"]
    assert arguments["inner"]["lr"] == 0.123
    assert arguments["optimizer"]["class_path"] == "torch.optim.SGD"
    assert arguments["lr_scheduler"]["init_args"]["step_size"] == 2
    assert arguments["inner"]["train_steps"] == 1  # of the first file
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert state["lr_schedulers"][0]["step_size"] == 2


def test_number_of_outputs_follows_the_data(cli):
    run = cli("fit", MAML, "--data.task.num_ways=7", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["num_outputs"] == 7


def test_runs_without_logger_do_not_write_over_each_other(cli, tmp_path):
    """PITFALLS 22: without a logger the saved config would land in the working folder and stop the next run."""
    first = cli("fit", PROTONET, "--trainer.logger=false", "--trainer.limit_train_batches=1")
    second = cli("fit", PROTONET, "--trainer.logger=false", "--trainer.limit_train_batches=1")
    assert first != second
    for run in (first, second):
        assert {"config.yaml", "results.json", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs"}


@pytest.mark.slow
def test_overfitting_sees_the_same_batch_in_every_epoch(cli, monkeypatch):
    seen = []
    step = MAMLModule.training_step
    monkeypatch.setattr(
        MAMLModule,
        "training_step",
        lambda self, batch, batch_idx: seen.append(batch.support_x) or step(self, batch, batch_idx),
    )
    cli("fit", MAML, "--trainer.overfit_batches=1", "--trainer.max_epochs=3", "--trainer.limit_val_batches=0")
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_the_printed_command_can_be_pasted_from_a_folder_with_markup(cli, tmp_path, monkeypatch, capsys):
    """Rich would take ``[/x]`` for the end of a style and leave ``[red]`` out; a shell would split at the space."""
    folder = tmp_path / "my [red] exp[lr=0.1] [" / "x]"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    root = f"--trainer.default_root_dir={folder}"
    cli("fit", PROTONET, root, "--trainer.limit_train_batches=1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lightning test")]
    command = shlex.split(line)
    main([*command[1:], "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    assert results(folder / "lightning_logs" / "version_1")["stage"] == "test"


def test_turning_things_off(cli):
    run = cli("fit", PROTONET, "--trainer.enable_checkpointing=false", "--trainer.limit_train_batches=1")
    assert results(run)["checkpoint"] is None
    assert not (run / "checkpoints").exists()
    cli("fit", PROTONET, "--trainer.fast_dev_run=true")
    assert cli("fit", PROTONET, "--trainer.barebones=true", "--trainer.log_every_n_steps=0") is not None


def test_a_users_own_classes_by_import_path(cli, tmp_path, monkeypatch):
    (tmp_path / "own_classes.py").write_text(
        "from metatransfer import EpisodicDataModule, MAMLModule, MLP\n"
        "class MyBackbone(MLP):\n    pass\n"
        "class MyMethod(MAMLModule):\n    pass\n"
        "class MyEpisodes(EpisodicDataModule):\n    pass\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command itself looks where it is called
    run = cli(
        "fit", MAML, "--model=own_classes.MyMethod", "--data=own_classes.MyEpisodes", "--data.source=Glyphs", "--model.backbone=own_classes.MyBackbone",
        "--model.backbone.in_shape=[1,28,28]", "--model.optimizer=Adam", "--trainer.limit_train_batches=1",
    )  # fmt: skip
    assert results(run)["protocol"]["method"]["name"] == "MyMethod"
    assert results(run)["protocol"]["data"]["data"] == "Glyphs"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["class_path"] == "own_classes.MyEpisodes"


@pytest.mark.slow
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
    (["fit", "--config", MAML, "--model", "ProtoNt"], ["unknown class 'ProtoNt'", "Did you mean ProtoNetModule?"]),
    (["fit", "--config", MAML, "--model.backbone", "Conv5"], ["unknown class 'Conv5' for backbone", "Conv4?"]),
    (["fit", "--config", MAML, "--model.optimizer", "Adm"], ["unknown class 'Adm' for optimizer", "Did you mean Adam?"]),
    (["fit", "--config", MAML, "--data", "EpisodicDataModul"], ["unknown class 'EpisodicDataModul'", "EpisodicDataModule?"]),
    (["fit", "--config", MAML, "--model.iner", "3"], ["MAMLModule has no argument 'iner'", "inner?"]),
    (["fit", "--config", MAML, "--model.backbone.hidden", "3"], ["Conv4 has no argument 'hidden'", "hidden_channels"]),
    (["fit", "--config", MAML, "--model.lr_scheduler", "ReduceLROnPlateau"], ["ReduceLROnPlateau needs monitor: give --model.lr_scheduler.monitor."]),
    (["fit", "--config", MAML, "--model.lr_scheduler", "CosineAnnealingLR"], ["CosineAnnealingLR needs T_max: give --model.lr_scheduler.T_max."]),
    (["fit", "--config", MAML, "--model.lr_scheduler", "StepRL"], ["unknown class 'StepRL' for lr_scheduler", "Did you mean StepLR?"]),
    (["fit", "--config", MAML, "--model.lr_scheduler=StepLR", "--model.lr_scheduler.step=3"], ["StepLR has no argument 'step'", "Did you mean step_size?"]),
    (["fit", "--config", MAML, "--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=x"], ["error: model.lr_scheduler.step_size must be an integer, but is 'x'."]),
    (["fit", "--config", MAML, "--model.optimizer.lr", "abc"], ["error: model.optimizer.lr must be a number, but is 'abc'."]),
    (["fit", "--config", MAML, "--model.optimizer.lr", "-1"], ["Invalid learning rate: -1.0"]),
    (["fit", "--config", MAML, "--model.optimizer.lrr", "1"], ["Adam has no argument 'lrr'. Did you mean lr?"]),
    (["fit", "--config", MAML, "--model.optimizer.betas", "0.9"], ["model.optimizer.betas must be a list, but is '0.9'"]),
    (["fit", "--config", MAML, "--model.optimizer", "null"], ["model.optimizer is null, but needs a value"]),
    (["fit", "--config", MAML, "--model.inner.lr", "null"], ["MAMLModule needs inner.lr: give --model.inner.lr."]),
    (["fit", "--config", MAML, "--data.task.num_shots", "null"], ["data.task.num_shots is null, but needs a value"]),
    (["fit", "--config", MAML, "--model", "EpisodicModule"], ["model must not be an abstract class: give one of ", "ProtoNetModule"]),
    (["fit", "--config", MAML, "--model", "torch.nn.Linear"], ["model must be the name of a LightningModule, but is 'torch.nn.Linear'"]),
    (["fit", "--config", MAML, "--data", "metatransfer.EpisodicDataModul"], ["module metatransfer has no class 'EpisodicDataModul'. Did you mean EpisodicDataModule?"]),
    (["fit", "--config", MAML, "--data.processing.augmentation.degrees", "5"], ["'degrees'", "give the class first, for example --data.processing.augmentation"]),
    (["fit", "--config", MAML, "--data.processing.augmentation=RandomAffine", "--data.processing.augmentation.shear=-1"], ["shear must be 0 or more, but is -1.0"]),
    (["fit", "--config", MAML, "--trainer.logger", "CSVLogger"], ["CSVLogger needs save_dir: give --trainer.logger.save_dir."]),
    (["fit", "--config", MAML, "--trainer.logger", "CSVLoger"], ["unknown class 'CSVLoger' for logger. Did you mean CSVLogger?", "TensorBoardLogger"]),
    (["fit", "--config", MAML, "--trainer.callbacks", "EarlyStoping"], ["unknown class 'EarlyStoping' for callbacks. Did you mean EarlyStopping?"]),
    (["fit", "--config", MAML, "--trainer.callbacks", "EarlyStopping"], ["EarlyStopping needs monitor"]),
    (["fit", "--config", MAML, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=x"], ["EarlyStopping has no argument 'monitr'. Did you mean monitor?"]),
    (["fit", "--config", MAML, "--trainer.val_check_interval", "100"], ["trainer.val_check_interval is 100, but an epoch has only 1 batches"]),
    (["fit", "--config", MAML, "--trainer.val_check_interval", "0"], ["trainer.val_check_interval must be a number above 0"]),
    (["fit", "--config", MAML, "--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches must be a number above 0"]),
    (["fit", "--config", MAML, "--trainer", "null"], ["trainer must be a section of names with values, or a YAML file, but is 'null'."]),
    (["fit", "--config", MAML, "--config", "{trainer: [1]}"], ["--config, line 1: section 'trainer' must have names with values, but has a list."]),
    (["fit", "--config", MAML, "--config", "[1, 2]"], ["--config must have sections such as trainer, model and data, but has a list."]),
    (["fit", "--config", MAML, "--seed_everything", "-1"], ["seed_everything must be a whole number from 0 to 4294967295, but is -1"]),
    (["fit", "--config", MAML, "--seed_everything", str(10**30)], ["seed_everything must be a whole number from 0"]),
    (["fit", "--config", MAML, "--data.task.num_ways", "1"], ["Glyphs (train split) has 1-way episodes", "raise task.num_ways to 2 or more"]),
    (["test", "--config", MAML, "--ckpt_path", "best"], ["--ckpt_path best needs an earlier run, but there is none with a last.ckpt"]),
    (["fit", "maml.yaml"], ["unexpected argument 'maml.yaml'. Did you mean --config maml.yaml?"]),
    (["fit", "--config", MAML, "--trainer.max_epochs"], ["--trainer.max_epochs requires a value."]),
    (["fit", "--config", MAML, "--trainer.precision", "bf16-mixd"], ["trainer.precision must be", "Did you mean bf16-mixed?"]),
    (["fit", "--config", ROOT / "configs"], ["configs'", "is a folder"]),
    (["fit", "--config", MAML, "--modl.inner.steps", "3"], ["unknown option", "Did you mean --model.inner"]),
    (["fit", "--config", MAML, "--model.inner.stepps", "3"],
     ["unknown option '--model.inner.stepps'", "Did you mean --model.inner.steps?"]),
    (["fit", "--config", MAML, "--trainr.max_epochs", "3"], ["unknown option '--trainr.max_epochs'", "--trainer.max_epochs?"]),
    (["fit", "--config", MAML, "--model.inner.steps", "x"], ["inner.steps must be an integer", "'x'"]),
    (["fit", "--config", MAML, "--trainer.max_epochs", "x"], ["trainer.max_epochs must be an integer", "'x'"]),
    (["fit", "--config", MAML, "--model.batch_norm", "suport"], ["batch_norm must be one of", "Did you mean support?"]),
    (["fit", "--config", MAML, "--model.inner.lr", "0"], ["inner.lr must be", "0.0"]),
    (["fit", "--config", MAML, "--model", "not.there.Thing"], ["no module 'not'"]),
    (["fit", "--config", "nope.yaml"], ["nope.yaml' does not exist"]),
    (["fitt", "--config", MAML], ["unknown command 'fitt'", "Did you mean fit?"]),
    (["fit"], ["missing data and model", "--config"]),
    ([], ["no command given"]),
    (["test", "--config", MAML, "--ckpt_path", "nope.ckpt"], ["checkpoint 'nope.ckpt' does not exist"]),
    (["predict", "--config", PROTONET], ["predict needs two folders"]),
    (["predict", "--config", PROTONET, "--data.predict.support=a", "--data.predict.query=b"], ["support folder 'a' does not exist"]),
    (["fit", "--config", MAML, "--data.task.num_ways", "5000"], ["Glyphs (train split) has", "5000-way"]),
    (["fit", "--config", MAML, "--data.task.num_shots", "30"], ["Glyphs (train split): class", "20 samples", "30-shot"]),
    (["fit", "--config", MAML, "--data.task.num_ways", "0"], ["num_ways must be a whole number from 1"]),
    (["fit", "--config", MAML, "--data.eval_task.num_ways", "7"], ["labels from 0 to 6", "num_outputs=5"]),
    (["fit", "--config", MAML, "--data.episodes.train", "4"], ["episodes.train=4 is less than one meta-batch"]),
    (["fit", "--config", MAML, "--model.backbone.in_channels", "3"], ["(3, 28, 28), but the data has (1, 28, 28)"]),
    (["fit", "--config", MAML, "--model.backbone.image_size", "8"], ["Conv4 cannot process samples of shape (1, 8, 8)"]),
    (["fit", "--config", MAML, "--checkpoint.monitor", "val/acuracy"], ["'val/acuracy' is not logged", "Did you mean val/accuracy?"]),
    (["fit", "--config", MAML, "--trainer.barebones", "true"], ["trainer: ", "barebones"]),
]  # fmt: skip


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    ("arguments", "expected"), MISTAKES, ids=[" ".join(map(str, a[-2:])).replace(f"{ROOT}/", "") for a, _ in MISTAKES]
)
def test_a_mistake_is_answered_in_one_sentence(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = arguments
    if arguments[:1] == ["fit"] and len(arguments) > 1:
        arguments = [*arguments, "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false",
                     "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=1",
                     "--data.episodes.val=2"]  # fmt: skip
        if {"nope.yaml", "maml.yaml", ROOT / "configs"} & set(arguments) or arguments[3:] == ["--trainer.max_epochs"]:
            arguments = given
    message = messages.keep(complaint(capsys, *arguments))
    for words in expected:
        assert words in message
    assert "Namespace" not in message
    assert not list(tmp_path.rglob("*.ckpt")), "a refused run left a checkpoint"


def test_a_checkpoint_of_another_network_is_refused(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = best_checkpoint(runs("fit", MAML, "--trainer.limit_train_batches=1"))
    other = ["test", "--config", MAML, "--ckpt_path", checkpoint, "--trainer.accelerator=cpu"]
    message = complaint(capsys, *other, "--model.backbone.hidden_channels=16")
    assert "do not fit this MAMLModule" in message
    assert "backbone.layers.0.weight (8, 1, 3, 3) instead of (16, 1, 3, 3)" in message


def test_a_file_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(b"not a checkpoint")
    assert "cannot be read as a checkpoint" in complaint(capsys, "test", "--config", MAML, "--ckpt_path", bad)
    torch.save({"weights": 1}, bad)
    assert "has no 'state_dict'" in complaint(capsys, "test", "--config", MAML, "--ckpt_path", bad)


FOLDERS = [
    (["--trainer.default_root_dir"], "trainer.default_root_dir"),
    (["--checkpoint.dirpath"], "checkpoint.dirpath"),
    (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir"], "trainer.logger.save_dir"),
    (["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath"], "trainer.callbacks.dirpath"),
]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that nobody may write to, even root")
@pytest.mark.parametrize(("arguments", "name"), FOLDERS, ids=[name for _, name in FOLDERS])
def test_an_unwritable_folder_is_refused_before_anything_is_made(arguments, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = complaint(capsys, "fit", "--config", MAML, *arguments, "/proc/runs/mine")
    assert f"{name} '/proc/runs/mine' cannot be written" in message
    assert not list(tmp_path.iterdir())


def test_the_working_folder_may_be_read_only_where_nothing_is_written_to_it(cli, tmp_path, monkeypatch):
    command = sys.modules["metatransfer.cli.main"]

    seen = []
    check = command.check_writable
    monkeypatch.setattr(command, "check_writable", lambda path, what: seen.append(what) or check(path, what))
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'elsewhere'}"]
    cli("fit", PROTONET, *logger, "--trainer.limit_train_batches=1")
    assert seen == ["trainer.logger.save_dir"]
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}


def test_a_file_in_the_place_of_the_folder_is_refused(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    message = complaint(capsys, "fit", "--config", MAML, "--trainer.default_root_dir", tmp_path / "taken" / "runs")
    assert "is a file, not a folder" in message


# ---- configuration files

CONFIG_FILES = [
    (b"", "is empty: it must have sections such as trainer, model and data."),
    (b"- a\n- b\n", "must have sections such as trainer, model and data, but has a list."),
    (b"hello\n", "must have sections such as trainer, model and data, but has only 'hello'."),
    (b"\xff\xfe\x00\x01abc", "line 1: this is not UTF-8 text; give a YAML file."),
    ("seed_everything: 0\nname: é\n".encode("latin-1"), "line 2: this is not UTF-8 text; give a YAML file."),
    (b"a: \x00\n", "is not a text file: give a YAML file."),
    (b"model: MAMLModule\n\tx: 3\n", "line 2: this is not valid YAML: found character"),
    (b"trainer: [1,\n", "this is not valid YAML:"),
    (b"seed_everything: 0\ntrainer:\n- a\n", "line 3: section 'trainer' must have names with values, but has a list."),
    (b"trainer: 5\n", "line 1: section 'trainer' must have names with values, but has only '5'."),
    (b"trainer:\n", "line 1: section 'trainer' must have names with values, but has nothing."),
    (b"fit:\n  trainer: 5\n", "line 2: section 'trainer' must have names with values"),
    (b"model: [a]\n", "line 1: section 'model' must have a class or names with values, but has a list."),
    (b"trainer: {}\nmodel: X\ntrainer: {}\n", "line 3: 'trainer' appears twice in its section"),
    (b"trainer:\n  callbacks:\n  - class_path: X\n    monitor: y\n", "line 4: 'monitor' is beside class_path"),
]  # fmt: skip


@pytest.mark.grid(3)
@pytest.mark.parametrize(("content", "sentence"), CONFIG_FILES, ids=[sentence[:40] for _, sentence in CONFIG_FILES])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "over-another"])
def test_a_broken_configuration_file_is_named_with_its_line(content, sentence, alone, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content)
    message = complaint(capsys, "fit", *([] if alone else ["--config", MAML]), "--config", "mine.yaml")
    assert message.startswith("error: config file 'mine.yaml'")
    assert sentence in message


def test_sections_of_a_configuration_file_may_be_words_and_anchors(tmp_path):
    from metatransfer.cli.config_files import check_config

    file = tmp_path / "mine.yaml"
    file.write_text("fit:\n  data: ClassBatches\n  model: null\nx: &a {b: 1}\ny: {<<: *a, c: 2}\n")
    check_config(file)


# ---- what a run waits for


STOPPING = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor"]
PLATEAU = ["--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor"]
MONITORS = [
    ([*STOPPING, "val/acc"], "1", ["EarlyStopping's monitor 'val/acc'", "Did you mean val/accuracy?"], 0),
    ([*STOPPING, "val/acc"], "0", ["EarlyStopping's monitor 'val/acc'", "Did you mean val/accuracy?"], 3),
    ([*STOPPING, "train/los"], "1", ["EarlyStopping's monitor 'train/los'", "Did you mean train/loss?"], 1),
    ([*STOPPING, "val/los", "--trainer.val_check_interval=0.5"], "0", ["'val/los'", "Did you mean val/loss?"], 1),
    ([*PLATEAU, "val/los"], "1", ["ReduceLROnPlateau's monitor 'val/los'", "Did you mean val/loss?"], 0),
    ([*PLATEAU, "val/los"], "0", ["ReduceLROnPlateau's monitor 'val/los'", "Did you mean val/loss?"], 3),
    (["--checkpoint.monitor", "val_loss"], "1", ["checkpoint.monitor 'val_loss'", "Did you mean val/loss?"], 0),
    (["--checkpoint.monitor", "accuracy"], "1", ["checkpoint.monitor 'accuracy'", "Did you mean val/accuracy?"], 1),
]  # fmt: skip


@pytest.mark.grid(3)
@pytest.mark.parametrize(("arguments", "sanity", "expected", "batches"), MONITORS)
def test_a_metric_that_nobody_logs_is_refused_at_the_start(
    arguments, sanity, expected, batches, capsys, cli, tmp_path, monkeypatch
):
    trained = []
    step = ProtoNetModule.training_step
    monkeypatch.setattr(ProtoNetModule, "training_step", lambda *a: trained.append(1) or step(*a))
    with pytest.raises(SystemExit) as stop:
        cli("fit", PROTONET, "--data.episodes.train=6", f"--trainer.num_sanity_val_steps={sanity}", *arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for words in expected:
        assert words in message
    assert len(trained) == batches
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("sanity", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_metrics_that_are_logged_are_waited_for(cli, sanity):
    """Also one that only the training logs, and only for whole epochs."""
    arguments = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
    run = cli("fit", PROTONET, *arguments, *PLATEAU, "val/loss", f"--trainer.num_sanity_val_steps={sanity}")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["trained_by"]["lr_scheduler"] == ["ReduceLROnPlateau"]
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert saved["lr_scheduler"]["class_path"] == "lightning.pytorch.cli.ReduceLROnPlateau"


def test_a_metric_logged_for_epochs_only_is_known_after_the_first_batch(cli, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "from metatransfer import ProtoNetModule\n"
        "class Own(ProtoNetModule):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        self.log('mine', 1.0, on_step=False, on_epoch=True)\n"
        "        return super().training_step(batch, batch_idx)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["--model=own_metric.Own", "--model.backbone=Conv4", *STOPPING, "mine"]
    assert cli("fit", PROTONET, *arguments, "--trainer.num_sanity_val_steps=1") is not None


# ---- resuming


def test_resuming_with_another_optimizer_or_scheduler_is_refused(cli, capsys):
    sgd = ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"]
    steps = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1"]
    checkpoint = cli("fit", PROTONET, *sgd, *steps) / "checkpoints" / "last.ckpt"
    resume = command_line("fit", PROTONET, "--ckpt_path", checkpoint)
    assert "trained with optimizer SGD, but this run has Adam" in complaint(capsys, *resume)
    other = ["--model.lr_scheduler=ExponentialLR", "--model.lr_scheduler.gamma=0.5"]
    message = complaint(capsys, *resume, *sgd, *other)
    assert "trained with lr_scheduler StepLR, but this run has ExponentialLR" in message
    assert cli("fit", PROTONET, *sgd, *steps, "--ckpt_path", checkpoint, "--trainer.max_epochs=2") is not None


# ---- a user's own collection


def own_data(tmp_path, name, source):
    (tmp_path / f"{name}.py").write_text(
        f"from metatransfer import Collection\nclass Mine(Collection):\n    def parts(self):\n        {source}\n"
    )
    return f"--data.source={name}.Mine"


def test_a_file_that_is_missing_or_locked_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", PROTONET, "--trainer.accelerator=cpu"]
    message = complaint(capsys, *fit, own_data(tmp_path, "gone", "open('data/gone.npz')"))
    assert message == "error: 'data/gone.npz': no such file or directory; check the path."
    locked = own_data(tmp_path, "locked", "raise PermissionError(13, 'Permission denied', 'locked.npz')")
    assert complaint(capsys, *fit, locked) == "error: 'locked.npz': permission denied; check its permissions."


def test_a_bug_in_a_users_code_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    bug = own_data(tmp_path, "bug", "len(3)")
    with pytest.raises(TypeError, match="has no len"):
        main(["fit", "--config", str(PROTONET), bug, "--trainer.accelerator=cpu"])
    handled = own_data(
        tmp_path, "handled", "\n        ".join(["try:", "    open('gone')", "except OSError:", "    len(3)"])
    )
    with pytest.raises(TypeError, match="has no len"):
        main(["fit", "--config", str(PROTONET), handled, "--trainer.accelerator=cpu"])


# ---- entry points


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["metatransfer", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("metatransfer", run_name="__main__")
    assert not stop.value.code
    shown = capsys.readouterr().out
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
    assert shown["checkpoint"]["monitor"] == "auto"  # what the method is chosen by
