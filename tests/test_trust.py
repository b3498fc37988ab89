"""What a checkpoint or a configuration names: checked before anything is imported or called."""

import dataclasses
import functools
import importlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from metatransfer.cli import main
from metatransfer.cli.commands import export
from metatransfer.cli.config_files import check_known
from metatransfer.cli.run_start import rebuilt
from metatransfer.errors import UserError
from metatransfer.methods import (
    Adaptation,
    AdaptedFeaturesModule,
    Annealing,
    DANNModule,
    Execution,
    FineTuneModule,
    FrozenFeaturesModule,
    ImportanceWeightedModule,
    InnerLoop,
    MAMLModule,
    PretrainModule,
    ProtoNetModule,
    Ramp,
    ReptileModule,
)
from metatransfer.methods.finetune import LayerwiseLRDecay
from metatransfer.metrics import Entropy
from metatransfer.nn import MLP, Backbone, Conv4, LinearHead
from metatransfer.trust import check_classes, checked_arguments

CONV = {"class_path": "metatransfer.nn.Conv4", "init_args": {"image_size": 28}}


@dataclasses.dataclass(frozen=True)
class Options:
    """Grouped arguments."""

    rate: float = 1.0
    shape: tuple[int, ...] = ()


class Wrapper(Backbone):
    """A backbone with arguments of many kinds."""

    def __init__(
        self, inner: Backbone, more: dict[str, Backbone] | None = None, options: Options | None = None,
        shape: tuple[int, ...] = (), path: Path | None = None, extra=None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inner, self.more, self.options = inner, more, options
        self.shape, self.path, self.extra = shape, path, extra
        self.out_features = inner.out_features

    def forward(self, x):
        return self.inner(x)


WRAPPER = {"class_path": f"{__name__}.Wrapper"}


def function_of_a_caller(*args, **kwargs):
    raise AssertionError("called")


def written(tmp_path, **hyper_parameters):
    path = tmp_path / "stranger.ckpt"
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": hyper_parameters}
    torch.save(content, path)
    return path


def outcome(kind, path, **kwargs):
    """What loading a stranger's file raises."""
    with pytest.raises(Exception, match=r".") as caught:
        kind.load_from_checkpoint(path, **kwargs)
    return caught.value


def inside(*names):
    """Puts a description at a place inside others."""

    def at(bad):
        for name in reversed(names):
            bad = [bad] if name == "[]" else {name: bad}
        return bad

    return at


POSITIONS = {
    "optimizer": (FineTuneModule, inside("optimizer")),
    "lr_scheduler": (FineTuneModule, inside("lr_scheduler")),
    "head": (FineTuneModule, inside("head")),
    "head of maml": (MAMLModule, inside("head")),
    "backbone": (ProtoNetModule, inside("backbone")),
    "policy": (FineTuneModule, inside("policy")),
    "policy in a list": (FineTuneModule, inside("policy", "[]")),
    "discriminator": (DANNModule, inside("discriminator")),
    "estimator": (ImportanceWeightedModule, inside("estimator")),
    "plain argument": (FineTuneModule, inside("num_classes")),
    "unknown argument": (FineTuneModule, inside("no_such_argument", "[]", "deeper")),
    "init_args": (ProtoNetModule, lambda bad: {"backbone": {**WRAPPER, "init_args": {"inner": bad}}}),
    "dict_kwargs": (ProtoNetModule, lambda bad: {"backbone": {**WRAPPER, "dict_kwargs": {"inner": bad}}}),
    "untyped": (ProtoNetModule, lambda bad: {"backbone": {**WRAPPER, "init_args": {"inner": CONV, "extra": bad}}}),
    "dict of classes": (
        ProtoNetModule,
        lambda bad: {"backbone": {**WRAPPER, "init_args": {"inner": CONV, "more": {"a": bad}}}},
    ),
    "dataclass": (
        ProtoNetModule,
        lambda bad: {"backbone": {**WRAPPER, "init_args": {"inner": CONV, "options": {"rate": bad}}}},
    ),
}
BAD = (
    ("os.system", {"command": "touch pwned"}),
    ("subprocess.Popen", {"args": "touch pwned", "shell": True}),
    ("builtins.exec", {"source": "open('pwned', 'w')"}),
    ("torch.hub.load", {"repo_or_dir": "stranger/repository", "model": "net"}),
    ("torch.serialization.os.system", {"command": "touch pwned"}),
    ("writes_on_import.Net", {}),
    (f"{__name__}.function_of_a_caller", {}),
)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A working folder with a module that writes a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("writes_on_import.py").write_text(
        "open('pwned', 'w').close()\nfrom metatransfer.nn import Conv4\n"
        "class Net(Conv4): pass\ndef make(**kwargs): open('pwned', 'w').close()\n"
    )
    yield tmp_path
    sys.modules.pop("writes_on_import", None)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("path", "init_args"), BAD, ids=[path for path, _ in BAD])
def test_a_checkpoint_calls_and_imports_nothing_of_a_stranger(stranger, position, path, init_args):
    kind, at = POSITIONS[position]
    bad = at({"class_path": path, "init_args": init_args})
    instantiator = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    error = outcome(kind, written(stranger, **{"backbone": CONV, **instantiator, **bad}))
    assert isinstance(error, UserError)
    assert path in str(error)
    assert not Path("pwned").exists()
    assert "writes_on_import" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "{class_path: os.system, init_args: {command: touch pwned}}",
        '{"class\\x5fpath": os.system, "init_args": {command: touch pwned}}',
        "writes_on_import.Net",
        "writes_on_import.make",
        "stranger.yaml",
        "os.system",
    ],
)
@pytest.mark.parametrize("argument", ["optimizer", "backbone", "head"])
def test_text_in_a_checkpoint_stays_text(stranger, text, argument):
    Path("stranger.yaml").write_text("{class_path: os.system, init_args: {command: touch pwned}}")
    path = written(
        stranger, **{"backbone": CONV, argument: text, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    )
    outcome(MAMLModule, path)
    assert not Path("pwned").exists()
    assert "writes_on_import" not in sys.modules


@pytest.mark.parametrize("name", ["_instantiator", "_class_path", "hparams", "module_arguments"])
def test_what_lightning_reads_beside_the_arguments_runs_nothing(stranger, name):
    bad = {"optimizer": {"class_path": "os.system", "init_args": {"command": "touch pwned"}}}
    path = written(stranger, backbone=CONV, **({name: "writes_on_import.make"} if name.startswith("_") else {}))
    torch.save({**torch.load(path), name: bad, "hparams_name": "kwargs"}, path)
    outcome(ProtoNetModule, path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("path", ["Conv4", "", "a..b", "torch.nn.__main__.Net", 3, None, ["os.system"]])
def test_a_path_that_is_none(tmp_path, path):
    assert "import path" in str(outcome(ProtoNetModule, written(tmp_path, backbone={"class_path": path})))


@pytest.mark.parametrize(
    "backbone",
    [{**CONV, "init_args": ["os.system"]}, {**CONV, "init_args": {"no_such": 1}}, {**CONV, "dict_kwargs": 3}],
)
def test_arguments_that_do_not_fit(tmp_path, backbone):
    error = outcome(ProtoNetModule, written(tmp_path, backbone=backbone))
    assert isinstance(error, UserError)
    assert "ProtoNetModule" in str(error)


def test_hyper_parameters_that_contain_themselves():
    bad = {"backbone": CONV}
    bad["again"] = bad
    with pytest.raises(UserError, match="ProtoNetModule"):
        checked_arguments(ProtoNetModule, bad)


def test_a_package_is_imported_where_the_caller_trusts_it(stranger):
    path = written(stranger, backbone={"class_path": "writes_on_import.Net", "init_args": {"image_size": 28}})
    assert "trusted=['writes_on_import']" in str(outcome(ProtoNetModule, path))
    assert "weights do not fit" in str(
        outcome(ProtoNetModule, path, trusted=["writes_on_import"])
    )  # built, but no weights
    assert Path("pwned").exists()


def test_trusting_a_package_does_not_allow_its_functions(stranger):
    path = written(stranger, optimizer={"class_path": "os.system", "init_args": {"command": "touch pwned"}})
    assert "Optimizer" in str(outcome(ProtoNetModule, path, trusted=["os"]))
    assert not Path("pwned").exists()


def test_arguments_come_back_in_their_kinds():
    options = {"rate": 2.0, "shape": [3, 4]}
    arguments = {"inner": CONV, "more": {"a": CONV}, "options": options, "shape": [1, 2], "path": "x", "extra": [CONV]}
    described = {
        "_class_path": f"{__name__}.Own",
        "backbone": {**WRAPPER, "init_args": arguments},
        "head": {"class_path": "metatransfer.nn.LinearHead"},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
        "lr_scheduler": None,
        "removed_since": 1,
    }
    kind, built = checked_arguments(MAMLModule, described)
    backbone, head, optimizer = built["backbone"], built["head"], built["optimizer"]
    assert kind is Own
    assert isinstance(backbone.more["a"], Conv4)
    assert isinstance(backbone.extra[0], Conv4)
    assert (backbone.options, backbone.shape, backbone.path) == (Options(2.0, (3, 4)), (1, 2), Path("x"))
    assert isinstance(head(3, 2), LinearHead)
    assert isinstance(optimizer, functools.partial)
    assert optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.5
    assert (built["lr_scheduler"], "removed_since" in built) == (None, False)


class Own(MAMLModule):
    """A method of the caller."""


class HandsOn(MAMLModule):
    """A method that names only its own argument."""

    def __init__(self, strength: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.strength = strength


def test_keywords_that_a_subclass_hands_on():
    head = {"class_path": "metatransfer.nn.LinearHead"}
    built = checked_arguments(HandsOn, {"strength": 2.0, "backbone": CONV, "head": head})[1]
    assert isinstance(HandsOn(**built, num_outputs=2).head, LinearHead)


def test_another_method_than_the_one_that_was_asked_for():
    with pytest.raises(UserError, match="subclass of MAMLModule"):
        checked_arguments(MAMLModule, {"_class_path": "metatransfer.ProtoNetModule"})


def test_the_callers_arguments_win(tmp_path):
    module = ProtoNetModule(MLP([4], [3]), optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    again = ProtoNetModule.load_from_checkpoint(kept(tmp_path, module), optimizer=torch.optim.Adam)
    assert again.optimizer is torch.optim.Adam
    torch.testing.assert_close(dict(again.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def kept(tmp_path, module, **changed):
    """The checkpoint of a module, with some of its arguments described in another way."""
    path = written(tmp_path, **{**module.hparams, **changed})
    torch.save({**torch.load(path), "state_dict": module.state_dict()}, path)
    return path


def network():
    return MLP([4], [3])


ADAPTATION = Adaptation(validator=Entropy(source_floor=0.5), annealing=Annealing(alpha=3.0))
FAMILIES = {
    "gradient": lambda: MAMLModule(network(), 2, inner=InnerLoop(3, 0.2, max_norm=1.0), execution=Execution("loop")),
    "metric": lambda: ProtoNetModule(network(), distance="cosine"),
    "finetune": lambda: FineTuneModule(network(), 2, policy=LayerwiseLRDecay(0.5)),
    "supervised": lambda: PretrainModule(network(), 2, scale=3.0),
    "features": lambda: FrozenFeaturesModule(network(), 2),
    "domain": lambda: DANNModule(network(), 2, ramp=Ramp(max_lambda=0.5), adaptation=ADAPTATION),
    "adapted features": lambda: AdaptedFeaturesModule(network(), 2, validator=Entropy(source_floor=0.5)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_of_each_family_comes_back_with_its_arguments(tmp_path, family):
    module = FAMILIES[family]()
    again = type(module).load_from_checkpoint(kept(tmp_path, module))
    groups = [name for name in ("inner", "execution", "ramp") if hasattr(module, name)]
    assert [getattr(again, name) for name in groups] == [getattr(module, name) for name in groups]
    assert again.protocol() == module.protocol()  # validator, annealing, policy, ...
    assert {**again.hparams, "_instantiator": None} == {**module.hparams, "_instantiator": None}


def test_fields_that_a_group_lacks_keep_the_methods_default(tmp_path):
    module = ReptileModule(network(), 2)
    path = kept(tmp_path, module, inner={"lr": 0.5}, execution={"batching": "loop"})
    again = ReptileModule.load_from_checkpoint(path)
    assert again.inner == dataclasses.replace(module.inner, lr=0.5)
    assert again.execution == Execution("loop")
    module = DANNModule(network(), 2)
    again = DANNModule.load_from_checkpoint(kept(tmp_path, module, ramp={"gamma": 5.0}, adaptation={}))
    assert (again.ramp, again.adaptation) == (Ramp(gamma=5.0), Adaptation())


def test_the_caller_may_replace_single_fields_of_a_group(tmp_path):
    path = kept(tmp_path, FAMILIES["gradient"]())
    assert MAMLModule.load_from_checkpoint(path, inner={"steps": 9}).inner == InnerLoop(9, 0.2, max_norm=1.0)
    assert MAMLModule.load_from_checkpoint(path, inner=InnerLoop(9, 0.1)).inner == InnerLoop(9, 0.1)


@pytest.mark.parametrize("inner", [{"no_such_field": 1}, {"steps": -1}, {"max_norm": "os.system"}])
def test_a_group_that_does_not_fit_is_an_error(tmp_path, inner):
    assert isinstance(outcome(MAMLModule, kept(tmp_path, FAMILIES["gradient"](), inner=inner)), UserError)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_no_path_is_unpickled(stranger, monkeypatch):
    file = io.BytesIO()
    torch.save(Bomb(), file)
    Path("bomb.ckpt").write_bytes(file.getvalue())
    monkeypatch.setattr(  # what Lightning fetches URLs with
        torch.hub, "load_state_dict_from_url", lambda url, **kwargs: torch.load("bomb.ckpt", **kwargs)
    )
    for path in ("bomb.ckpt", Path("bomb.ckpt"), io.BytesIO(file.getvalue()), "http://host/bomb.ckpt"):
        assert "cannot be read as a checkpoint of tensors and plain values" in str(outcome(ProtoNetModule, path))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("path", ["os.system", f"{__name__}.function_of_a_caller", "torch.optim.adam.adam"])
def test_a_configuration_with_a_function_for_a_class(path):
    settings = Namespace(
        model=Namespace(init_args=Namespace(policy=[{"class_path": path}]), class_path="torch.nn.ReLU")
    )
    with pytest.raises(UserError, match=rf"model\.policy\.0 must name a class, but '{path}'"):
        check_classes(settings)


def test_the_command_line_calls_no_function(stranger, capsys):
    bad = "{class_path: os.system, init_args: {command: touch pwned}}"
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", "--model=ProtoNetModule", "--model.backbone=Conv4", f"--model.optimizer={bad}"),
                *("--data=EpisodicDataModule", "--data.source=Glyphs", "--trainer.accelerator=cpu"),
            ]
        )
    assert "model.optimizer must name a class, but 'os.system'" in capsys.readouterr().err
    assert not Path("pwned").exists()


# ---- the configuration beside a checkpoint


NAMED = {
    "class": {"class_path": "strange_package.Net"},
    "word": "strange_package.Net",
    "inside": {"class_path": "metatransfer.Conv4", "init_args": {"parts": [{"more": "strange_package.sub.Net"}]}},
    "text": '{"class_path": "strange_package.Net"}',
    "escaped": r'{"class\x5fpath": "strange\x5fpackage.Net"}',
    "file": "net.txt",
    "word in a file": "word.txt",
}


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A folder with a package that must not be imported, as the current one."""
    (tmp_path / "strange_package.py").write_text("import pathlib\n\npathlib.Path('imported').touch()")
    (tmp_path / "net.txt").write_text("class_path: strange_package.Net")
    (tmp_path / "word.txt").write_text("# a network\nstrange_package.Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("strange_package", None)


@pytest.mark.parametrize("how", NAMED)
def test_the_configuration_beside_a_checkpoint_names_known_packages(how, strange):
    with pytest.raises(UserError, match=r"names '.*', which could run code .* give --config"):
        check_known({"init_args": {"backbone": NAMED[how]}}, strange / "run" / "config.yaml")


def test_what_a_run_saves_is_allowed(strange, monkeypatch):
    (strange / "table.csv").write_text("length,label\n1.5,cat\n2.5,dog: a big one\n")
    (strange / "photos").mkdir()
    saved = {"class_path": f"{__name__}.Wrapper", "path": "table.csv", "root": "photos", "monitor": "val/loss",
             "lr": 0.1, "empty": "", "number": "1.5", "home": "~nobody_like_that/x.csv", "missing": "no_package.Net",
             "network": {"class_path": "torch.nn.ReLU"}, "shape": [1, 28, 28], "none": None}  # fmt: skip
    check_known(saved, strange / "config.yaml")
    check_known("zipapp.csv", strange / "config.yaml")  # a file that has the name of a module of Python
    (strange / "zipapp.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"names 'zipapp\.csv'"):
        check_known("zipapp.csv", strange / "config.yaml")


@pytest.mark.parametrize("given", [False, True])
def test_only_a_given_configuration_may_name_classes_of_ones_own(given, strange):
    config = strange / "config.yaml"
    data = {"class_path": "strange_package.Data"}
    config.write_text(yaml.safe_dump({"model": {"class_path": "strange_package.Net"}, "data": data}))
    more = str(config) if given else None
    checkpoint = strange / "checkpoints" / "last.ckpt"
    export_settings = Namespace(config=more, ckpt_path=checkpoint)
    for call in (lambda: rebuilt(checkpoint, {}, more, []), lambda: export._data(export_settings)):
        with pytest.raises(UserError, match="strange_package" if given else "names 'strange_package"):
            call()
        assert (strange / "imported").exists() == given
        (strange / "imported").unlink(missing_ok=True)
        sys.modules.pop("strange_package", None)
