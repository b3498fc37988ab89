"""Runs that stop and go on, and runs in several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from conftest import ENDLESS, ROOT, TWO_BATCHES, command_line, latest_run, results, three_epochs, tiny
from contract import CONFIGS, KINDS, canaries, glyphs_for, methods, name_of, small
from metatransfer import Conv4, EpisodeMean, Episodes, EpisodicDataModule, EpisodicModule, Glyphs, MAMLModule, Task
from metatransfer.cli import main
from processes import exit_code, in_two, started


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_states(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


class StopAt(pl.Callback):
    """Ctrl-C after a number of batches, or a real one in the middle of the last of them."""

    def __init__(self, batches: int, in_batch: bool):
        self.left, self.in_batch = batches, in_batch

    def on_train_batch_end(self, *_):
        self.left -= 1
        if self.left == 0 and not self.in_batch:
            raise KeyboardInterrupt

    def on_before_backward(self, *_):
        if self.left == 1 and self.in_batch:
            os.kill(os.getpid(), signal.SIGINT)


def assert_interrupted_goes_on_bit_equal(cli, whole, config, in_batch):
    """Interrupted in the second of three epochs, after the third of six batches."""
    stop = {"class_path": "test_training.StopAt", "init_args": {"batches": 9, "in_batch": in_batch}}
    with pytest.raises(SystemExit):
        cli("fit", config, *three_epochs(config), f"--trainer.callbacks={json.dumps([stop])}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores further ones for its shutdown
    last = latest_run(Path.cwd()) / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 9

    resumed = cli("fit", config, *three_epochs(config), "--ckpt_path", last)
    expected = whole(config)
    assert_equal_states(weights(resumed / "checkpoints" / "last.ckpt"), weights(expected / "checkpoints" / "last.ckpt"))
    # the report goes on too: the same best epoch with the same number
    assert results(resumed)["metrics"] == results(expected)["metrics"]


# Every configuration is interrupted in a batch, which is the harder case; one of each kind at the other places. Equal
# bits also show that the same seed gives the same run.
@pytest.mark.slow
@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_interrupted_between_batches_it_goes_on_bit_equal(cli, whole, config):
    assert_interrupted_goes_on_bit_equal(cli, whole, config, in_batch=False)


@pytest.mark.parametrize("config", canaries(CONFIGS, "maml"))
def test_interrupted_in_a_batch_it_goes_on_bit_equal(cli, whole, config):
    assert_interrupted_goes_on_bit_equal(cli, whole, config, in_batch=True)


@pytest.mark.slow
@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_resuming_at_the_end_of_an_epoch_is_bit_equal(cli, whole, config):
    expected = weights(whole(config) / "checkpoints" / "last.ckpt")
    first = cli("fit", config, *three_epochs(config), "--trainer.max_epochs=1")
    resumed = cli("fit", config, *three_epochs(config), "--ckpt_path", first / "checkpoints" / "last.ckpt")
    assert_equal_states(weights(resumed / "checkpoints" / "last.ckpt"), expected)


class InterruptAt(pl.Callback):
    """Ctrl-C, once or twice, in a training batch or in a batch of a validation, which draws random numbers too."""

    def __init__(self, epoch: int, stage: str, batch: int, times: int):
        self.epoch, self.stage, self.batch, self.times = epoch, stage, batch, times

    def _interrupt(self, trainer, stage, batch):
        if (trainer.current_epoch, stage, batch) == (self.epoch, self.stage, self.batch):
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)  # the handler runs between two steps of the interpreter

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._interrupt(trainer, "train", batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        torch.rand(1)
        self._interrupt(trainer, "val", batch_idx)


WITH_VALIDATIONS = [
    "--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss",
    "--model.lr_scheduler.patience=0", "--model.lr_scheduler.mode=max", "--model.lr_scheduler.threshold=10",
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "batch", "times", "settings"),
    [
        pytest.param("train", 1, 1, [], marks=pytest.mark.slow, id="before"),  # the validation is next
        pytest.param("val", 1, 1, [], id="inside"),
        # at once; the last state is of before the validation
        pytest.param("val", 2, 2, ["--checkpoint.every_n_train_steps=1"], marks=pytest.mark.slow, id="at-once"),
        pytest.param("val", 1, 1, ["--trainer.val_check_interval=0.5"], marks=pytest.mark.slow, id="in-mid-epoch"),
    ],
)
def test_an_interrupted_validation_is_done_when_the_run_goes_on(cli, runs, stage, batch, times, settings):
    """With a scheduler that lives on validations: each one left out or done twice changes the weights.

    Stopped in the second of three epochs of two batches, each with three batches of validation.
    """
    config = ROOT / "configs" / "protonet.yaml"
    settings = [*three_epochs(config), *WITH_VALIDATIONS, *TWO_BATCHES, *settings]

    def interrupting(times):
        where = {"epoch": 1, "stage": stage, "batch": batch, "times": times}
        return f"--trainer.callbacks={json.dumps([{'class_path': 'test_training.InterruptAt', 'init_args': where}])}"

    whole = runs("fit", config, *settings, interrupting(0))
    with pytest.raises(SystemExit):
        cli("fit", config, *settings, interrupting(times))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    last = latest_run(Path.cwd()) / "checkpoints" / "last.ckpt"
    resumed = cli("fit", config, *settings, interrupting(0), "--ckpt_path", last)
    ended = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, resumed)]
    assert ended[1]["lr_schedulers"] == ended[0]["lr_schedulers"]
    assert_equal_states(ended[1]["state_dict"], ended[0]["state_dict"])
    history = [[(entry["step"], entry["metrics"]) for entry in results(run)["history"]] for run in (whole, resumed)]
    assert history[1] == history[0]


class Tell(pl.Callback):
    """Makes a file when a few batches are done."""

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 2:
            Path(self.path).touch()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_control_c_leaves_a_checkpoint_that_resumes(cli, tmp_path):
    """A real SIGINT to a real process."""
    config = ROOT / "configs" / "protonet.yaml"
    told = tmp_path / "told"
    tell = json.dumps([{"class_path": "test_training.Tell", "init_args": {"path": str(told)}}])
    fit = [*tiny(config), *ENDLESS, f"--trainer.callbacks={tell}"]
    process = started(main, command_line("fit", config, *fit), output=tmp_path / "output.txt")
    deadline = time.monotonic() + 120
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    exit_code(process, 60)
    output = (tmp_path / "output.txt").read_text()
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    assert last.exists(), output
    assert f"--ckpt_path {last}" in output
    assert "Traceback" not in output
    step = torch.load(last, weights_only=True)["global_step"]
    assert step >= 3
    again = cli("fit", config, *fit, "--ckpt_path", last, "--trainer.max_steps", step + 2)
    assert torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step + 2


# ---- two processes


class Gradients(pl.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.found = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def train_one_step(kind, tasks, trainer_arguments):
    pl.seed_everything(3)
    data = glyphs_for(kind, tasks, num_ways=3, num_shots=2, num_queries=3, train_episodes=4, val_episodes=5, seed=1)
    # 64-bit, no running statistics, no mini-batches drawn: what differs is only who does which task
    info, taken = data.info(), kind.__init__.__annotations__
    settings = {"inner_batch_size": None, "num_classes": info.num_classes, "train_classes": info.train_classes}
    if "support" in str(taken.get("batch_norm")):
        settings["batch_norm"] = "support"
    module = small(kind, **{name: value for name, value in settings.items() if name in taken}).double()
    if "batch_norm" not in settings:
        module.backbone = GroupNormConv.like(module.backbone)
        for part in list(module.modules()):
            for place, layer in part.named_children():
                if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                    setattr(part, place, torch.nn.Identity())
    gradients = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="64-true", callbacks=[gradients], num_sanity_val_steps=0,
        limit_val_batches=0, **trainer_arguments,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return gradients.found


class GroupNormConv(Conv4):
    """ProtoNet's BatchNorm pools the tasks of a process; without it the processes must agree exactly."""

    @classmethod
    def like(cls, other):
        torch.manual_seed(5)
        return cls(hidden_channels=4, norm="group").double()


def train_as_one_of_two(rank, name, folder):
    kind = next(kind for kind in methods(EpisodicModule) if kind.__name__ == name)
    found = train_one_step(kind, 2, {"strategy": "ddp", "devices": 2})
    metric = EpisodeMean()
    metric.update(torch.tensor([[0.2, 0.4, 0.9], [0.5, 1.0, 0.3]][rank]), answers=30)
    torch.save({"gradients": found, "mean": metric.compute()}, f"{folder}/{rank}.pt")


DRAWING = ("AmortizedVariationalModule", "LEOModule", "VersaModule")  # each process draws weights of its own


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.__name__, marks=() if kind is MAMLModule else pytest.mark.slow)
        for kind in methods(EpisodicModule)
        if kind.__name__ not in DRAWING
    ],
)
def test_two_processes_give_the_single_process_gradient(kind, tmp_path):
    expected = train_one_step(kind, 4, {"devices": 1})
    in_two(train_as_one_of_two, kind.__name__, str(tmp_path))
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(saved["gradients"][name], gradient, rtol=1e-9, atol=1e-11)
        whole = EpisodeMean()
        whole.update(torch.tensor([0.2, 0.4, 0.9, 0.5, 1.0, 0.3]), answers=60)
        for one, two in zip(saved["mean"], whole.compute(), strict=True):
            torch.testing.assert_close(one, two)


# ---- from Python, without the command


def test_from_python_with_a_plain_trainer(tmp_path):
    """Checkpoints of modules built in Python are plain too, and rebuild themselves."""
    from functools import partial

    module = MAMLModule(Conv4(hidden_channels=4), num_outputs=5, optimizer=partial(torch.optim.SGD, lr=0.05))
    data = EpisodicDataModule(
        Glyphs(), task=Task(num_queries=2), episodes=Episodes(per_batch=2, train=4, val=4, test=4)
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    path = trainer.checkpoint_callback.best_model_path
    assert "hyper_parameters" in torch.load(path, weights_only=True)
    loaded = MAMLModule.load_from_checkpoint(path)
    assert_equal_states(loaded.state_dict(), module.state_dict())
    assert loaded.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.05
    assert loaded.trained_protocol["data"]["data"] == "Glyphs"
    live, again = (trainer.test(one, data, verbose=False)[0] for one in (module, loaded))
    assert again == pytest.approx(live, nan_ok=True)
