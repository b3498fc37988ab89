"""Checkpoints of any condition: they are loaded, or one sentence says what is wrong; and what loads without a class."""

import copy
import errno
import functools
import os
import runpy
import tempfile
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

import metatransfer
from metatransfer import (
    MLP,
    Arrays,
    Backbone,
    ClassifierModule,
    EpisodicModule,
    FineTuneModule,
    LabelledDataModule,
    MethodModule,
    ProtoNetModule,
    Table,
    UserError,
)
from processes import exit_code, started

X = torch.rand(8, 5)


def trainer(epochs=1):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def module():
    return FineTuneModule(MLP((5,), (4,)), num_classes=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "a.npz"
    np.savez(path, x=np.random.default_rng(0).random((60, 5), np.float32), y=np.arange(60) % 3)
    return LabelledDataModule(Arrays(str(path)))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path, run, one = tmp_path_factory.mktemp("run") / "a.ckpt", trainer(), module()
    run.fit(one, datamodule=data)
    run.save_checkpoint(path)
    return one.eval(), path


def changed(path, tmp_path, **parts):
    """A checkpoint with other parts; ``None`` leaves one out."""
    content = {**torch.load(path, weights_only=True), **{name.replace("__", "-"): one for name, one in parts.items()}}
    torch.save({name: one for name, one in content.items() if one is not None}, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def refused(build, *words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        build()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "load", [metatransfer.load, MethodModule.load_from_checkpoint, ClassifierModule.load_from_checkpoint]
)
def test_a_checkpoint_names_its_class(trained, load):
    one, path = trained
    again = load(path).eval()
    assert type(again) is FineTuneModule
    assert torch.equal(again(X), one(X))


def test_load_takes_arguments_and_gives_a_module_ready_to_predict(trained):
    again = metatransfer.load(trained[1], label_smoothing=0.5)
    assert again.label_smoothing == 0.5
    assert not again.training


def test_a_base_of_another_kind(trained, tmp_path):
    refused(lambda: EpisodicModule.load_from_checkpoint(trained[1]), "FineTuneModule", "subclass of EpisodicModule")
    unnamed = changed(trained[1], tmp_path, class_path=None)
    refused(lambda: metatransfer.load(unnamed), "does not record the class", "load_from_checkpoint")
    assert isinstance(FineTuneModule.load_from_checkpoint(unnamed), FineTuneModule)


def test_what_names_the_class_is_not_trusted(trained, tmp_path):
    for path in ("os.system", "torch.nn.Linear", "nowhere.Module"):
        refused(lambda path=path: metatransfer.load(changed(trained[1], tmp_path, class_path=path)), path)


def test_weights_alone(trained, data, tmp_path):
    path = changed(trained[1], tmp_path, optimizer_states=None, lr_schedulers=None, loops=None, callbacks=None)
    assert torch.equal(metatransfer.load(path)(X), trained[0](X))
    assert trainer().test(module(), data, ckpt_path=path, verbose=False)
    refused(
        lambda: trainer(2).fit(module(), data, ckpt_path=path),
        "contains only weights", "--model.backbone.weights",
    )  # fmt: skip


DAMAGED = {
    "version": ({"pytorch__lightning_version": "abc"}, "has no valid 'pytorch-lightning_version'"),
    "number as version": ({"pytorch__lightning_version": 3}, "is a int instead of a str"),
    "no version": ({"pytorch__lightning_version": None}, "has no valid 'pytorch-lightning_version'"),
    "no weights": ({"state_dict": None}, "has no 'state_dict'"),
    "list of weights": ({"state_dict": [1]}, "'state_dict' is a list"),
    "arguments": ({"hyper_parameters": [1]}, "'hyper_parameters' is a list"),
    "no arguments": ({"hyper_parameters": None}, "missing a required argument: 'backbone'"),
    "loops": ({"loops": {}}, "'loops' has no 'fit_loop'"),
    "random numbers": ({"rng_state": {"cpu": torch.zeros(3)}}, "'rng_state' has no state"),
    "class names": ({"class_names": 3}, "'class_names' is a int"),
    "card": ({"protocol": "card"}, "'protocol' is a str"),
    "numbers as names": ({"state_dict": {1: torch.zeros(3)}}, "'state_dict' has names that are not texts"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_sentence(name, trained, tmp_path):
    parts, words = DAMAGED[name]
    refused(lambda: FineTuneModule.load_from_checkpoint(changed(trained[1], tmp_path, **parts)), words)


@pytest.mark.parametrize("value", [torch.zeros(3), "text", 7, [1]])
@pytest.mark.parametrize("path", [("backbone",), ("backbone", "init_args"), ("policy",)])
def test_arguments_of_another_kind(path, value, trained, tmp_path):
    recorded = torch.load(trained[1], weights_only=True)["hyper_parameters"]
    wrong = changed(trained[1], tmp_path, hyper_parameters=at(recorded, path, value))
    with pytest.raises(
        UserError, match=r"(does not record valid arguments of|hyper-parameters do not fit) FineTuneMod"
    ):
        FineTuneModule.load_from_checkpoint(wrong)


@pytest.mark.parametrize("version", ["", torch.zeros(3)])
def test_a_trainer_checks_what_it_loads(version, trained, data, tmp_path):
    path = changed(trained[1], tmp_path, pytorch__lightning_version=version)
    refused(lambda: trainer(2).fit(module(), data, ckpt_path=path), "pytorch-lightning_version")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to("meta"), "holds no values"),
        (lambda value: value.to_sparse(), "is sparse"),
        (lambda value: "text", "is a str instead of"),
        (lambda value: value[:1], "(1,"),
    ],
)
def test_weights_that_are_none(change, words, trained, tmp_path):
    weights = torch.load(trained[1], weights_only=True)["state_dict"]
    weights["head.linear.weight"] = change(weights["head.linear.weight"])
    path = changed(trained[1], tmp_path, state_dict=weights)
    refused(lambda: metatransfer.load(path), "head.linear.weight", words)


@pytest.mark.parametrize("content", [[1], torch.zeros(3), {}, {"state_dict": {}}])
def test_another_kind_of_file(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    refused(lambda: metatransfer.load(tmp_path / "a.ckpt"), "is not a Lightning checkpoint")
    (tmp_path / "a.ckpt").write_text("text")
    refused(lambda: metatransfer.load(tmp_path / "a.ckpt"), "cannot be read as a checkpoint")
    refused(lambda: metatransfer.load(tmp_path / "b.ckpt"), "does not exist. Did you mean a.ckpt?")


def test_an_optimizer_without_state(trained, data, tmp_path):
    for states, words in (([], "contains only weights"), ([{"state": {}}], "'optimizer_states'")):
        path = changed(trained[1], tmp_path, optimizer_states=states)
        refused(lambda path=path: trainer(2).fit(module(), data, ckpt_path=path), words)


def at(content, path, value):
    """A copy of nested content with another value at ``path``; ``None`` removes it."""
    twin = copy.copy(content)
    if len(path) > 1:
        twin[path[0]] = at(content[path[0]], path[1:], value)
    elif value is None:
        del twin[path[0]]
    else:
        twin[path[0]] = value
    return twin


STATE = ("optimizer_states", 0, "state", 0)
GROUP = ("optimizer_states", 0, "param_groups", 0)
BEST = ("callbacks", pl.callbacks.ModelCheckpoint(save_last=True).state_key)
STOPPING = ("callbacks", "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((*STATE, "exp_avg"), torch.zeros(7, 2), "state of AdamW"),
        ((*STATE, "exp_avg"), "text", "state of AdamW"),
        ((*STATE, "exp_avg_sq"), None, "exp_avg_sq"),
        ((*STATE, "step"), torch.zeros(3), "state of AdamW"),
        ((*STATE, "step"), {}, "state of AdamW"),
        ((*GROUP, "lr"), None, "lr"),
        ((*GROUP, "lr"), "text", "state of AdamW"),
        ((*GROUP, "betas"), 3, "state of AdamW"),
        ((*GROUP, "params"), [0, 1], "state of AdamW"),
        (("lr_schedulers", 0), 3, "state of StepLR"),
        (("lr_schedulers", 0, "last_epoch"), "text", "state of StepLR"),
        (("lr_schedulers", 0, "step_size"), {}, "state of StepLR"),
        (STOPPING, 3, "'EarlyStopping' is a int instead of a dict"),
        ((*STOPPING, "wait_count"), "text", "'EarlyStopping.wait_count' is a str instead of a int"),
        ((*STOPPING, "best_score"), None, "state of EarlyStopping"),
        ((*BEST, "current_score"), "text", "'ModelCheckpoint.current_score' is a str instead of a float"),
        ((*BEST, "best_model_score"), torch.zeros(3), "'ModelCheckpoint.best_model_score' is a Tensor instead of"),
        (("loops", "fit_loop", "epoch_progress"), None, "'loops.fit_loop' has no 'epoch_progress'"),
        (("loops", "fit_loop", "epoch_progress", "current"), 3, "'loops.fit_loop.epoch_progress.current' is a int"),
        (("loops", "fit_loop", "epoch_progress", "current", "ready"), "3", "current.ready' is a str instead of a int"),
        (("hparams_name",), torch.zeros(3), "'hparams_name' is a Tensor instead of a str"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_damage_to_the_state_of_a_run_is_one_sentence_before_it_begins(path, value, words, resumable, data, tmp_path):
    build, _, content = resumable
    torch.save(at(content, path, value), tmp_path / "changed.ckpt")
    run, one = build()
    one.on_train_start = lambda: pytest.fail("it has begun")
    refused(lambda: run.fit(one, datamodule=data, ckpt_path=tmp_path / "changed.ckpt"), words)


def test_a_run_goes_on_from_its_checkpoint(resumable, data):
    build, path, _ = resumable
    run, one = build()
    run.fit(one, datamodule=data, ckpt_path=path)
    assert run.current_epoch == 2


class Traced(torch.optim.AdamW):
    """Notes the devices of its steps; with ``values`` it looks at a gradient, which the meta device does not have."""

    devices: ClassVar[list[str]] = []
    values = False

    def step(self, closure=None):
        tensors = [one for group in self.param_groups for one in group["params"]]
        tensors += [one for state in self.state.values() for one in state.values()]
        type(self).devices.append({one.device.type for one in tensors if one.numel() > 1}.pop())
        assert not self.values or tensors[0].grad.sum().item() == 0
        return super().step(closure)


@pytest.mark.parametrize("values", [False, True])
def test_an_optimizer_is_tried_without_memory_of_the_device(values, resumable, data, tmp_path, monkeypatch):
    build, _, content = resumable
    monkeypatch.setattr(Traced, "values", values)
    monkeypatch.setattr(Traced, "devices", [])
    run, one = build(optimizer=Traced)
    one.on_train_start = lambda: tried.append(list(Traced.devices)) or monkeypatch.setattr(Traced, "values", False)
    tried = []
    torch.save({**content, "trained_by": {}}, tmp_path / "a.ckpt")
    before = copy.deepcopy(content["optimizer_states"])
    run.fit(one, datamodule=data, ckpt_path=tmp_path / "a.ckpt")
    assert tried == [["meta", "cpu"] if values else ["meta"]]
    assert set(Traced.devices[len(tried[0]) :]) == {"cpu"}
    state = run.optimizers[0].state_dict()["state"][0]
    assert state["step"] > before[0]["state"][0]["step"]


@pytest.fixture(scope="module")
def resumable(data, tmp_path_factory):
    """Makes a Trainer and a module of which a checkpoint is given, with its content."""
    path = tmp_path_factory.mktemp("run") / "a.ckpt"

    def build(epochs=2, **options):
        steps = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
        run = trainer(epochs)
        run.callbacks += [
            pl.callbacks.EarlyStopping("val/loss"),
            pl.callbacks.ModelCheckpoint(path.parent, save_last=True),
        ]
        return run, FineTuneModule(MLP((5,), (4,)), num_classes=3, lr_scheduler=steps, **options)

    run, one = build(1)
    run.fit(one, datamodule=data)
    run.save_checkpoint(path)
    return build, path, torch.load(path, weights_only=True)


def test_the_state_of_the_data_that_is_damaged(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,label\n" + "".join(f"{row},{row % 7},{'pq'[row % 2]}\n" for row in range(40)))
    served = LabelledDataModule(Table(str(tmp_path / "a.csv")))
    served.setup("fit")
    state = served.state_dict()
    for path, value in ((("encoder",), 3), (("encoder", "mean"), [1.0, 2.0, 3.0]), (("encoder", "scale"), "text")):
        refused(lambda path=path, value=value: served.load_state_dict(at(state, path, value)), "is damaged")


def test_a_compiled_backbone_loads(tmp_path):
    one = ProtoNetModule(MLP((5,), (4,)))
    plain = copy.deepcopy(one.state_dict())
    run = trainer()
    run.strategy.connect(one)
    run.save_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    compiled = {name.replace("backbone.", "backbone._orig_mod."): value for name, value in plain.items()}
    path = changed(tmp_path / "plain.ckpt", tmp_path, state_dict=compiled)
    assert torch.equal(metatransfer.load(path).backbone(X), one.eval().backbone(X))


# ---- classes of a script

SCRIPT = """
import lightning.pytorch as pl, torch
from metatransfer import Backbone, ProtoNetModule

class Net(Backbone):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(5, width)
        self.out_features = width

    def forward(self, x):
        return self.layer(x)

if __name__ == "__main__":
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(ProtoNetModule(Net(7)))
    trainer.save_checkpoint("net.ckpt", weights_only=True)
"""


def as_a_script(folder):
    os.chdir(folder)
    runpy.run_path("its_script.py", run_name="__main__")


def test_a_class_of_a_script(tmp_path, monkeypatch):
    (tmp_path / "its_script.py").write_text(SCRIPT)
    assert exit_code(started(as_a_script, tmp_path)) == 0
    path = tmp_path / "net.ckpt"
    refused(lambda: metatransfer.load(path), "'__main__.Net', a Backbone", "import the script first", "backbone=")
    monkeypatch.syspath_prepend(tmp_path)
    import its_script

    assert isinstance(metatransfer.load(path).backbone, its_script.Net)
    assert metatransfer.load(path).backbone.out_features == 7
    assert metatransfer.load(path, backbone=its_script.Net(7)).backbone.out_features == 7


def test_a_class_of_a_function(tmp_path):
    class Inner(Backbone):
        def __init__(self):
            super().__init__()
            self.layer, self.out_features = nn.Linear(5, 2), 2

        def forward(self, x):
            return self.layer(x)

    run = trainer()
    run.strategy.connect(ProtoNetModule(Inner()))
    run.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert isinstance(metatransfer.load(tmp_path / "a.ckpt").backbone, Inner)


def test_a_full_disk_leaves_the_old_checkpoint(data, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, path = trainer(), tmp_path / "last.ckpt"
    run.fit(module(), datamodule=data)
    monkeypatch.setattr(tempfile, "mkstemp", full)  # Lightning's way, in a folder that may be on another disk
    run.save_checkpoint(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        run.save_checkpoint(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
