"""Pretrained models on this machine: by folder, by package and by name, and the sentence where there is none."""

import sys

import pytest

from metatransfer import UserError
from metatransfer.model_folders import find_model_folder

FILES = ["config.json", "tokenizer.json"]


def model(folder):
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder(tmp_path):
    assert find_model_folder(str(model(tmp_path / "m")), FILES, "encoder") == tmp_path / "m"


def test_a_package_is_found_by_both_its_names_and_not_imported(tmp_path, monkeypatch):
    model(tmp_path / "some_model_pack" / "data" / "model")
    model(tmp_path / "some_model_pack" / "data" / "model" / "part")
    (tmp_path / "some_model_pack" / "__init__.py").write_text("raise RuntimeError('imported')")
    record = tmp_path / "Other_Name-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: other-name\nVersion: 1.0\n")
    (record / "RECORD").write_text("some_model_pack/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("some_model_pack", "some-model-pack", "other-name", "some_model_pack/data"):
        assert find_model_folder(f"package:{name}", FILES, "encoder") == tmp_path / "some_model_pack" / "data" / "model"
    assert "some_model_pack" not in sys.modules


def test_a_name_in_the_cache(cache):
    folder = cache / "models--owner--small"
    model(folder / "snapshots" / "aaa")
    new = model(folder / "snapshots" / "bbb")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb")
    assert find_model_folder("owner/small", FILES, "encoder") == new
    (new / "config.json").unlink()
    with pytest.raises(UserError, match=r"is neither a folder nor a model in the local cache '.*hub'"):
        find_model_folder("owner/small", FILES, "encoder")


def test_without_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="is neither a folder nor a model in the local cache of huggingface_hub"):
        find_model_folder("owner/small", FILES, "encoder")


def test_one_sentence(tmp_path, cache, monkeypatch):
    model(tmp_path / "two_models" / "first")
    model(tmp_path / "two_models" / "second")
    (tmp_path / "two_models" / "__init__.py").touch()
    (tmp_path / "empty_pack").mkdir()
    (tmp_path / "empty_pack" / "__init__.py").touch()
    model(tmp_path / "whole")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").touch()
    (tmp_path / "file").touch()
    monkeypatch.syspath_prepend(tmp_path)
    wrong = {
        str(tmp_path / "half"): "has no tokenizer.json: download it into the folder",
        str(tmp_path / "file"): "is a file: give the folder that contains config.json and tokenizer.json",
        str(tmp_path / "whol"): "Did you mean whole?",
        "owner/absent": "put its config.json and tokenizer.json into a folder and give the path",
        "../../x/y/z": "is neither a folder nor a model in the local cache",
        "package:no_such_pack": "no package 'no_such_pack' is installed",
        "package:": "no package '' is installed",
        "package:empty_pack": "contains no folder with config.json and tokenizer.json",
        "package:two_models": "(first, second): specify one, package:two_models/first",
    }
    for reference, words in wrong.items():
        with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
            find_model_folder(reference, FILES, "encoder")
        assert words in str(caught.value), str(caught.value)
        assert str(caught.value).startswith("encoder")
