"""Paths as collections, ``~``, short names and null, before the parser sees them."""

import json
import sys
import types
from pathlib import Path

import pytest
import yaml

from metatransfer.cli import main
from metatransfer.cli.rewriting import rewrite_arguments, rewrite_config

MINE = """
from lightning.pytorch import LightningDataModule
class Source:
    pass
class Folder(Source):
    def __init__(self, root: str, image_size: int = 28):
        pass
class Other(Source):
    def __init__(self, colour: str = "red"):
        pass
class Mine(LightningDataModule):
    def __init__(self, source: Source, sources: dict[str, Source] | None = None):
        super().__init__()
"""


@pytest.fixture(autouse=True)
def described(tmp_path, monkeypatch):
    """A folder of data and a fake ``describe_path``."""
    module = types.ModuleType("metatransfer.data.collections")
    module.describe_path = lambda path: {"class_path": "mine.Folder", "init_args": {"root": path}}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()


def folder(root="photographs", **more):
    return {"class_path": "mine.Folder", "init_args": {"root": root, **more}}


@pytest.mark.parametrize("form", [["--data.source", "photographs"], ["--data.source=photographs"]])
def test_a_path_becomes_its_description(form):
    option, _, value = "=".join(rewrite_arguments(form)).partition("=")
    assert option == "--data.source"
    assert json.loads(value) == folder()


@pytest.mark.parametrize("path", ["tickets.csv", "no/such/folder", "~/somewhere"])
def test_what_looks_like_a_path_is_one(path):
    (value,) = rewrite_arguments([f"--data.episodes.source={path}"])
    assert folder(str(Path(path).expanduser())) == json.loads(value.partition("=")[2])


def test_names_of_classes_win_over_paths(tmp_path):
    for name in ("Conv4", "mine.Folder", "Nonsense"):
        assert rewrite_arguments(["--data.source", name]) == ["--data.source", name]
    (tmp_path / "Conv4").mkdir()
    assert rewrite_arguments(["--data.source=Conv4"]) == ["--data.source=Conv4"]


def test_sources_and_targets_by_name():
    given = ["--data.targets.new", "photographs", "--data.sources={a: photographs, b: Conv4}", "--model.targets=4"]
    _, new, sources, other = rewrite_arguments(given)
    assert json.loads(new) == folder()
    assert yaml.safe_load(sources.partition("=")[2]) == {"a": folder(), "b": "Conv4"}
    assert other == "--model.targets=4"


def test_paths_in_yaml():
    given = "{source: photographs, sources: {a: photographs}, other: photographs}"
    text = f"data: {{class_path: mine.Mine, init_args: {given}}}\n"
    arguments = yaml.safe_load(rewrite_config(text))["data"]["init_args"]
    assert arguments == {"source": folder(), "sources": {"a": folder()}, "other": "photographs"}


def test_yaml_without_paths_stays_as_it_is():
    text = 'a: "1e-3"  # comment\nb: 1e-3\nc: [1, {d: e}]\nsource: {class_path: Conv4}\n'
    assert rewrite_config(text) == text
    changed = yaml.compose(rewrite_config(text + "x: ~/y\n"))
    assert [(value.value, value.style) for _, value in changed.value[:2]] == [("1e-3", '"'), ("1e-3", None)]


def test_the_home_folder_is_expanded_everywhere():
    home = str(Path.home())
    assert rewrite_arguments(["--config=~/a.yaml", "--ckpt_path", "~/b.ckpt", "--x=a~/b"]) == [
        f"--config={home}/a.yaml", "--ckpt_path", f"{home}/b.ckpt", "--x=a~/b",
    ]  # fmt: skip
    assert yaml.safe_load(rewrite_config("a: [{b: ~/c}]\nd: ~\n")) == {"a": [{"b": f"{home}/c"}], "d": None}


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data=mine.Mine", "--model=ProtoNetModule", "--model.optimizer=Adam",
              *arguments, "--print_config"])  # fmt: skip
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    assert "iscard" not in captured.err
    return yaml.safe_load(captured.out)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)


def test_the_chosen_class_is_saved_and_takes_arguments(mine, tmp_path, capsys):
    conv = ["--model.backbone=Conv4"]
    shown = printed(capsys, *conv, "--data.source=photographs", "--data.source.image_size=64")
    assert shown["data"]["init_args"]["source"] == folder(image_size=64)
    # from a configuration in another folder: paths are relative to where the command was started
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "a.yaml"
    file.write_text("data: {class_path: mine.Mine, init_args: {source: photographs}}\n")
    shown = printed(capsys, *conv, "--config", str(file), "--data.source.image_size=64")
    assert shown["data"]["init_args"]["source"] == folder(image_size=64)
    # another class leaves nothing of the first
    shown = printed(capsys, *conv, "--config", str(file), "--data.source=mine.Other")
    assert shown["data"]["init_args"]["source"] == {"class_path": "mine.Other", "init_args": {"colour": "red"}}


def test_null_is_none(mine, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(
        "model: {class_path: ProtoNetModule, init_args: {backbone: {class_path: Conv4, init_args: {weights: a.pt}}}}\n"
    )
    given = ["--config", str(file), "--data.source=mine.Other"]
    assert printed(capsys, *given)["model"]["init_args"]["backbone"]["init_args"]["weights"] == "a.pt"
    for null in (["--model.backbone.weights", "null"], ["--model.backbone.weights=null"]):
        assert printed(capsys, *given, *null)["model"]["init_args"]["backbone"]["init_args"]["weights"] is None


def test_version(capsys):
    import metatransfer

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert metatransfer.__version__ in capsys.readouterr().out
