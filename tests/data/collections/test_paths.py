"""A plain path is opened by what it is."""

import csv
import zipfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import savemat

from metatransfer.data import collections
from metatransfer.data.collections import describe_path, open_path
from metatransfer.errors import UserError


def opened(path, **more):
    """What a path is opened by, with its arguments but the path; the collection can be made of them."""
    found = describe_path(path)
    name = found["class_path"].removeprefix("metatransfer.data.collections.")
    data = getattr(collections, name)(**found["init_args"] | more)
    arguments = dict(found["init_args"])
    assert arguments.pop("root" if name == "ImageFolder" else "path") == str(path)
    return name, arguments, data


@pytest.fixture
def photographs(tmp_path):
    """Twenty photographs of each of five classes."""
    for name in ("cat", "dog", "eel", "fox", "gnu"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photographs" / name / f"{number}.jpg")
    return tmp_path / "photographs"


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_folders_and_zips_of_images(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    name, arguments, data = opened(photographs)
    assert (name, arguments) == ("ImageFolder", {})
    assert data.opened()["all"].sizes.tolist() == [20] * 5
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as archive:
        for file in photographs.rglob("*.jpg"):
            archive.write(file, file.relative_to(tmp_path))
    name, arguments, data = opened(tmp_path / "photographs.zip")
    assert (name, arguments) == ("ImageFolder", {})
    assert data.opened()["all"].sizes.tolist() == [20] * 5


@pytest.mark.parametrize("suffix", ["npz", "npy", "mat", "safetensors"])
def test_files_of_arrays(tmp_path, suffix):
    path, x, y = tmp_path / f"x.{suffix}", np.zeros((6, 2)), np.arange(6) % 2
    if suffix == "npy":
        np.save(path, x)
        np.save(tmp_path / "y.npy", y)
    elif suffix == "mat":
        savemat(path, {"x": x, "y": y})
    elif suffix == "npz":
        np.savez(path, x=x, y=y)
    else:
        save_file({"x": x, "y": y}, path)
    name, arguments, data = opened(path)
    assert name == "Arrays"
    assert arguments == ({"labels_path": str(tmp_path / "y.npy")} if suffix == "npy" else {})
    assert len(data.opened()["all"]) == 6


TABLES = {
    "Table": (["a", "b", "label"], [[1, "red", "x"], [2, "blue", "y"]], {}),
    "Table, other label": (["a", "b", "class"], [[1, "red", "x"]], {"label": "class"}),
    "Table, splits": (["a", "label", "split"], [[1, "x", "train"], [2, "y", "Test"]], {"split": "split"}),
    "Table, other splits": (["a", "label", "split"], [[1, "x", "left"]], {}),
    "Texts": (["id", "text", "label"], [[1, "hello", "x"], [2, "bye", "y"]], {}),
    "Texts, other names": (["review", "label"], [["hello", "x"]], {"text": "review"}),
    "Texts, by look": (
        ["notes", "target"],
        [["where is my lost card", "x"], ["it was eaten up here", "y"]],
        {"text": "notes", "label": "target"},
    ),
    "ImageTable": (["filename", "label"], [["a.jpg", "x"], ["b.PNG", "y"]], {}),
    "ImageTable, by look": (["n", "picture", "species"], [[1, "a.jpg", "x"]], {"file": "picture", "label": "species"}),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(tmp_path, case):
    head, rows, expected = TABLES[case]
    name, arguments, _ = opened(write(tmp_path / "t.csv", [head, *rows]))
    assert (name, arguments) == (case.partition(",")[0], expected)


def test_other_forms_of_tables(tmp_path):
    (tmp_path / "t.tsv").write_text("text\tlabel\nhello\tx\n")
    (tmp_path / "t.jsonl").write_text('{"text": "hello", "label": "x"}\n{"text": null, "label": "y"}\n')
    assert opened(tmp_path / "t.tsv")[0] == opened(tmp_path / "t.jsonl")[0] == "Texts"
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"a": [1.5, 2.5], "label": ["x", "y"]}), tmp_path / "t.parquet")
    assert opened(tmp_path / "t.parquet")[0] == "Table"


def test_the_home_folder(photographs, monkeypatch):
    monkeypatch.setenv("HOME", str(photographs.parent))
    assert describe_path("~/photographs")["init_args"] == {"root": str(photographs)}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("glyfs", "does not exist as a path. Did you mean Glyphs?"),
        ("ImagFolder", "Did you mean ImageFolder?"),
        ("photograph", "the data 'photograph' does not exist as a path. Did you mean photographs?"),
        ("none/of/this", "does not exist as a path: give an existing path, or the name of a collection"),
        ("one.jpg", "is a single image: give a folder with one folder of images per class"),
        ("table.xlsx", "is neither a folder or zip file of images, nor a table .*: convert it, or unpack it"),
        ("data.tar.gz", "unpack it if it is an archive"),
        ("notes", "'.*notes' has no folders: put the images of each class into a folder of its own"),
        ("empty", "'.*empty' has no folders: put the images of each class into a folder of its own"),
        ("empty.csv", "empty.csv' is empty"),
    ],
)
def test_one_sentence(photographs, tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    for name in ("one.jpg", "table.xlsx", "data.tar.gz", "empty.csv"):
        (tmp_path / name).touch()
    for name in ("notes", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a.csv", "b.txt"):
        (tmp_path / "notes" / name).touch()
    with pytest.raises(UserError, match=words) as caught:
        open_path(path).opened()
    assert "\n" not in str(caught.value)
