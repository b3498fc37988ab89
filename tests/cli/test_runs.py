"""Where runs are written, how they end, and how the next command finds them."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from conftest import ROOT, best_checkpoint, latest_run, results
from metatransfer import PredictionWriter, ProtoNetModule, UserError
from metatransfer.batches import Predictions
from metatransfer.callbacks.run.display import Summary, prepare_terminal, show
from metatransfer.callbacks.run.run_folder import claim_versions
from metatransfer.cli import main
from metatransfer.cli.main import _in_thread, mistake_of
from metatransfer.cli.rewriting import rewrite_arguments
from metatransfer.drawing.classifiers import confusion_figure, mistakes_figure
from metatransfer.drawing.episodes import to_pixels

PROTONET, MAML = ROOT / "configs" / "protonet.yaml", ROOT / "configs" / "maml.yaml"


def stopped(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


# ---- the checkpoints of earlier runs


def test_last_and_best_are_those_of_the_newest_run(cli, capsys):
    cli("fit", PROTONET)
    run = cli("fit", PROTONET, "--trainer.max_epochs=2", "--model.optimizer.lr=0.1")
    capsys.readouterr()
    cli("validate", PROTONET)
    last = f"{run.parent.name}/{run.name}/checkpoints/last.ckpt"
    assert f"initial weights, random or pretrained; for those of the newest run, add --ckpt_path {last}" in (
        capsys.readouterr().err
    )
    assert results(cli("test", PROTONET, "--ckpt_path", "last"))["checkpoint"] == last
    assert results(cli("test", PROTONET, "--ckpt_path=best"))["checkpoint"] == results(run)["checkpoint"]
    assert "without --ckpt_path" not in capsys.readouterr().err
    # in a run that was moved, the best is beside the last; without it, there is a sentence
    shutil.move(run, run.with_name("moved"))
    again = results(cli("test", PROTONET, "--ckpt_path=best"))["checkpoint"]
    assert again == results(run.with_name("moved"))["checkpoint"].replace(run.name, "moved")
    best_checkpoint(run.with_name("moved")).unlink()
    assert stopped("test", "--config", PROTONET, "--ckpt_path=best") == 2
    assert "has only lightning_logs/moved/checkpoints/last.ckpt" in capsys.readouterr().err
    resumed = cli("fit", PROTONET, "--trainer.max_epochs=3", "--model.optimizer.lr=0.1", "--ckpt_path=last")
    assert [entry["epoch"] for entry in results(resumed)["history"]] == [0, 1, 2]


def test_a_fit_may_test_at_its_end(cli, capsys):
    run = cli("fit", PROTONET, "--test_after_fit=true", "--trainer.max_epochs=3", "--model.optimizer.lr=0.3")
    found = json.loads((run / "results-test.json").read_text())
    assert results(run)["stage"] == "fit"
    assert len(list(run.parent.iterdir())) == 1
    # the saved configuration asks for it, too; the command test accepts that
    apart = results(cli("test", run / "config.yaml", "--ckpt_path", best_checkpoint(run)))
    for part in ("metrics", "baselines", "checkpoint", "trained_under", "protocol_differences"):
        assert found[part] == apart[part]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["test", "--help"])
    assert "test_after_fit" not in capsys.readouterr().out
    # without a validation that selects, the last checkpoint is tested
    run = cli("fit", PROTONET, "--test_after_fit=true", "--trainer.limit_val_batches=0")
    assert json.loads((run / "results-test.json").read_text())["checkpoint"].endswith("last.ckpt")
    assert stopped("test", "--config", PROTONET, "--ckpt_path=best") == 2
    assert "has only lightning_logs/version_2/checkpoints/last.ckpt: use --ckpt_path last" in capsys.readouterr().err


def test_a_stopped_fit_is_not_tested(cli, monkeypatch):
    monkeypatch.setattr(ProtoNetModule, "on_validation_start", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        cli("fit", PROTONET, "--test_after_fit=true")
    assert not list(Path("lightning_logs").glob("*/results-test.json"))


@pytest.mark.grid(3)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("word", ["last", "best"])
def test_without_an_earlier_run_there_is_nothing_to_continue(command, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stopped(command, "--config", PROTONET, "--ckpt_path", word) == 2
    assert f"--ckpt_path {word} needs an earlier run" in capsys.readouterr().err


def test_checkpoints_in_a_folder_of_their_own_are_found(cli, tmp_path):
    place = ["--checkpoint.dirpath", tmp_path / "mine"]
    cli("fit", PROTONET, *place)
    assert results(cli("test", PROTONET, "--ckpt_path=last", *place))["checkpoint"] == "mine/last.ckpt"


# ---- how a run ends


def test_sigterm_is_no_success_and_says_how_to_resume(cli, capsys, caplog, monkeypatch, tmp_path):
    step = ProtoNetModule.training_step
    monkeypatch.setattr(
        ProtoNetModule, "training_step", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or step(*args)
    )
    with pytest.raises(SystemExit) as stop:
        cli("fit", PROTONET)
    assert stop.value.code == 143
    run = latest_run(tmp_path)
    assert f"add to the same command: --ckpt_path {run}/checkpoints/last.ckpt" in capsys.readouterr().err + caplog.text
    monkeypatch.setattr(ProtoNetModule, "training_step", step)
    assert results(cli("fit", PROTONET, "--ckpt_path=last"))["metrics"]["accuracy"]["value"] > 0


@pytest.mark.parametrize(
    "length",
    [["--trainer.max_epochs=2"], ["--trainer.max_epochs=-1", "--trainer.max_steps=1"]],
    ids=["epochs", "steps"],
)
def test_a_fit_shorter_than_the_interval_between_validations_ends_with_one(length, cli):
    run = cli("fit", PROTONET, *length, "--trainer.check_val_every_n_epoch=5")
    answer = results(run)
    assert len(answer["history"]) == 1
    assert answer["checkpoint"].endswith(best_checkpoint(run).name)


def test_a_fit_that_has_validated_does_not_validate_once_more(cli):
    run = cli("fit", PROTONET, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2")
    assert [entry["epoch"] for entry in results(run)["history"]] == [1]


def test_a_fit_without_validation_keeps_and_names_its_last_state(cli, tmp_path):
    answer = results(cli("fit", PROTONET, "--trainer.limit_val_batches=0"))
    assert torch.load(tmp_path / answer["checkpoint"], weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("[/x/gloo/tcp/pair.cc:538] Connection closed by peer [::1]"),
            "another process of this",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device; free some space."),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "'a/b': read-only file system; check the path."),
        (RuntimeError("a bug"), None),
    ],
)
def test_what_happens_around_a_run_is_said_in_a_sentence(error, sentence):
    found = mistake_of(error)
    assert found is sentence is None or found.startswith(sentence)


# ---- folders


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_runs_that_start_together_have_folders_of_their_own(kind, tmp_path):
    def claim(_):
        logger = kind(tmp_path, name="runs")
        claim_versions(SimpleNamespace(loggers=[logger], is_global_zero=True))
        return logger.log_dir

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(claim, range(40)))
    assert len(set(folders)) == 40
    assert {os.path.basename(folder) for folder in folders} == {f"version_{number}" for number in range(40)}


def test_a_version_that_is_given_stays(tmp_path):
    logger = CSVLogger(tmp_path, version="mine")
    claim_versions(SimpleNamespace(loggers=[logger], is_global_zero=True))
    assert logger.version == "mine"


# ---- what is printed


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "a +- [/x] :cat: ?"), ("utf-8", "a ± [/x] :cat: ?")])
def test_every_name_can_be_printed_on_every_terminal(encoding, shown, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    show("a ± [/x] :cat: \udcff")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == shown + "\n"


def test_names_that_are_not_valid_unicode_can_be_drawn():
    names = ["c\udcff", "$x"]
    for figure in (confusion_figure(torch.eye(2), names), mistakes_figure([torch.rand(1, 4, 4)] * 2, names)):
        assert to_pixels(figure).std() > 10


def test_the_summary_of_the_model_counts_parameters_only(capsys):
    columns = {"Name": "backbone", "Type": "Conv4", "Params": "1.9 K", "Mode": "train", "FLOPs": "0"}
    Summary.summarize([(name, [value]) for name, value in columns.items()], 1900, 1800, 0.1, {}, total_flops=0)
    shown = capsys.readouterr().out
    assert "FLOPs" not in shown
    assert "1,800 of 1,900 parameters are trained" in shown


def test_messages_go_where_the_progress_bar_expects_them(monkeypatch, capsys):
    log = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler(io.StringIO())])
    prepare_terminal()
    for message in (
        "TPU available: False, using: 0 TPU cores",
        "`Trainer.fit` stopped: `max_epochs=2` reached.",
        "new",
    ):
        log.handlers[0].emit(logging.makeLogRecord({"msg": message}))
    assert capsys.readouterr().err == "new\n"


# ---- configurations


def test_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = {
        "omniglot/protonet": ROOT / "configs/omniglot/protonet.yaml",
        "configs/omniglot/protonet.yaml": ROOT / "configs/omniglot/protonet.yaml",
        "maml": ROOT / "configs/maml.yaml",
    }
    for name, path in wanted.items():
        for given in (["-c", name], ["--config", name], [f"--config={name}"]):
            option, found = " ".join(rewrite_arguments(given)).replace("=", " ").split(" ", 1)
            # an installed package has its own copy
            assert (option, Path(found).read_text()) == ("--config", path.read_text())
    (tmp_path / "maml").write_text("")
    assert rewrite_arguments(["--config=maml", "--config=none"]) == ["--config=maml", "--config=none"]


def test_a_misspelt_configuration_is_answered_with_a_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stopped("fit", "--config", "protonnet") == 2
    assert "protonnet' does not exist. Did you mean protonet?" in capsys.readouterr().err


CHANGED = [
    (["--model.optimizer", "SGD"], ("optimizer", "lr"), 0.001),
    (["--model.optimizer=torch.optim.SGD"], ("optimizer", "lr"), 0.001),
    (["--model.optimizer", "Adam"], ("optimizer", "lr"), 0.003),
    (["--model.backbone=ResNet12"], ("backbone", "weights"), None),
    (["--model.backbone={class_path: ResNet12}"], ("backbone", "weights"), None),
    (["--model.backbone=Conv4"], ("backbone", "weights"), "a.pt"),
]


@pytest.mark.grid(3)
@pytest.mark.parametrize(("arguments", "place", "expected"), CHANGED)
def test_another_class_takes_no_arguments_of_the_old_one(arguments, place, expected, capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    backbone = "{class_path: Conv4, init_args: {weights: a.pt}}"
    optimizer = "{class_path: Adam, init_args: {lr: 0.003}}"
    file.write_text(
        f"model: {{class_path: ProtoNetModule, init_args: {{backbone: {backbone}, optimizer: {optimizer}}}}}"
    )
    assert not stopped("fit", "--config", file, "--data=EpisodicDataModule", "--data.source=Glyphs", *arguments,
                       "--print_config")  # fmt: skip
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model[place[0]]["init_args"][place[1]] == expected


# ---- predictions


def test_predictions_go_where_they_are_asked_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    writer = PredictionWriter("out/mine.csv")
    part = Predictions(("a\udcff.png",), ("x", "y"), torch.tensor([[0.25, 0.75]]))
    trainer = SimpleNamespace(is_global_zero=True)
    writer.on_predict_batch_end(trainer, None, part, None, 0)
    writer.on_predict_end(trainer, None)
    with open("out/mine.csv", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [
            ["file", "label", "p(x)", "p(y)"],
            ["a\udcff.png", "y", "0.250000", "0.750000"],
        ]
    assert "1 predictions written to out/mine.csv" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the folder of output 'out/mine\.csv/x' cannot be created"):
        PredictionWriter("out/mine.csv/x/a.csv")


def test_output_is_an_option_of_predict_only(capsys):
    assert not stopped("predict", "--config", PROTONET, "--output", "a.csv", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["output"] == "a.csv"
    assert stopped("fit", "--config", PROTONET, "--output", "a.csv") == 2
    assert "unknown option" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "shown"), [(OSError(errno.EFBIG, "File too large"), False), (ValueError("x"), True)])
def test_a_thread_of_a_logger_leaves_a_full_disk_to_the_main_thread(error, shown, capsys):
    _in_thread(threading.ExceptHookArgs((type(error), error, None, threading.current_thread())))
    assert bool(capsys.readouterr().err) is shown
