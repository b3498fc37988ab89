"""Folders of labelled images: the layouts, what is served and the sentence of every mistake."""

import os
import shutil

import numpy as np
import pytest
import torch
from image_trees import write_zip
from PIL import Image

from metatransfer.data.collections import ImageFolder
from metatransfer.data.readers.image_source import ImageFileSource
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def write(path, value=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 7), (value, value, value)).convert(mode).save(path)


def write_classes(root, sizes):
    for c, (name, count) in enumerate(sizes.items()):
        for i in range(count):
            write(root / name / f"{i:02d}.png", 20 * c + i)
    return root


SPLITS = {"train": {"10": 4, "9": 3}, "val": {"9": 2}, "test": {"9": 1, "10": 2}}


def write_splits(root, names=("train", "val", "test")):
    for name, sizes in zip(names, SPLITS.values(), strict=False):
        write_classes(root / name, sizes)
    return root


def folder(root, **options):
    return ImageFolder(str(root), **{"image_size": 6, **options})


def sizes(data):
    return {
        part: dict(zip(source.class_names, source.sizes.tolist(), strict=True))
        for part, source in data.opened().items()
    }


def everything(source):
    return source.read(torch.arange(len(source)), CPU)


def test_plain_folders_come_undivided(tmp_path):
    """Twenty photographs of each of five classes are a data set."""
    data = folder(write_classes(tmp_path / "x", dict.fromkeys(["12", "9", "100", "11", "10"], 20)))
    assert sizes(data) == {"all": dict.fromkeys(["9", "10", "11", "12", "100"], 20)}  # numbers in their order
    source = data.opened()["all"]
    assert source.sample_shape == (3, 6, 6)
    # the grey of an image says its class
    greys = (everything(source)[:, 0, 0, 0] * 255).round().long() // 20
    assert [source.class_names[label] for label in source.labels] == [["12", "9", "100", "11", "10"][g] for g in greys]
    assert data.skipped == {"all": 0}
    assert data.divided_by is None
    assert data.protocol() == {"image_size": 6, "channels": 3}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "validation", "TEST"), ("train", "valid")])
def test_split_folders(tmp_path, names):
    data = folder(write_splits(tmp_path / "x", names))
    assert sizes(data) == {split: SPLITS[split] for split, _ in zip(SPLITS, names, strict=False)}
    assert data.protocol()["split"] == "by folders"


@pytest.mark.parametrize(
    "names",
    [("training", "validation", "testing"), ("train", "dev", "test"), ("seg_train", "Valid", "seg_test"),
     ("training_set", "val_images", "test_set"), ("TRAIN", "dev_set", "Testing")],
)  # fmt: skip
def test_splits_by_other_names(tmp_path, names):
    root = write_splits(tmp_path / "x", names)
    assert sizes(folder(root)) == SPLITS
    target = folder(root).unlabelled_parts()
    assert {part: len(one.source) for part, one in target.items()} == {"train": 7, "val": 2, "test": 3}


def test_files_that_are_not_read_are_counted_in_one_line(tmp_path, caplog):
    root = write_splits(tmp_path / "x")
    write(root / "train" / "10" / "more.jfif.png")
    for name in ("train/10/a.xcf", "train/9/b.XCF", "train/9/c.txt", "train/9/.hidden", "train/9/none"):
        (root / name).write_bytes(b"x")
    write(root / "train" / "loose.png")
    (root / "seg_pred").mkdir()
    with caplog.at_level("INFO"):
        data = folder(root)
        assert len(data.opened()["train"]) == 8
        assert len(data.opened()["val"]) == 2
    [line] = [one for one in caplog.messages if "are skipped" in one]
    assert "x' train: files that are not images of a class are skipped: 2 .xcf, " in line
    assert all(word in line for word in ("1 .txt", "1 .png", "1 without extension", "1 folder 'seg_pred'"))


def test_odd_names_of_classes(tmp_path):
    names = [os.fsdecode(b"caf\xe9"), "\u200bzero", "\u202eleft", "[x]", "new\nline"]
    root = write_classes(tmp_path / "x", dict.fromkeys(names, 2))
    source = folder(root).opened()["all"]
    assert set(source.class_names) == set(names)
    assert len(source.fingerprint()) == 64
    assert len(folder(root, memory_limit=1).opened()["all"].fingerprint()) == 64
    for path in ("a\0b", os.fsdecode(b"\xff")):
        with pytest.raises(UserError, match="does not exist"):
            folder(tmp_path / path).opened()


@pytest.mark.parametrize(
    ("others", "expected"), [({"c": 2, "d": 2}, "class"), ({"a": 1, "b": 2}, "sample"), ({"a": 1, "c": 2}, None)]
)
def test_what_the_splits_differ_in(tmp_path, others, expected):
    write_classes(tmp_path / "x" / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "x" / "test", others)
    data = folder(tmp_path / "x")
    data.opened()
    assert data.divided_by == expected


@pytest.mark.parametrize("packed", [False, True])
def test_only_training(tmp_path, packed):
    root = write_classes(tmp_path / "x" / "train", {"a": 4, "b": 3}).parent
    if packed:
        root = write_zip(tmp_path / "packed.zip", root, "x/")
    assert sizes(folder(root)) == {"train": {"a": 4, "b": 3}}


@pytest.mark.parametrize("make", [write_splits, lambda root: write_classes(root, {"a": 5, "b": 6})])
def test_a_zip_holds_the_same(tmp_path, make):
    root = make(tmp_path / "x")
    one, two = folder(root), folder(write_zip(tmp_path / "packed.zip", root, "x/"))
    assert sizes(one) == sizes(two)
    for part, source in one.opened().items():
        assert torch.equal(everything(source), everything(two.opened()[part]))


def test_classes_may_be_called_train_and_test(tmp_path):
    assert sizes(folder(write_classes(tmp_path / "x", {"train": 4, "test": 4, "bus": 4}))) == {
        "all": {"bus": 4, "test": 4, "train": 4}
    }


def test_images_of_any_mode(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 4, "b": 4})
    for i, mode in enumerate(("L", "P", "RGBA", "1", "LA", "I;16", "CMYK")):
        write(root / "a" / f"more{i}.{'tif' if mode == 'CMYK' else 'png'}", 100, mode)
    for channels in (1, 3):
        data = folder(root, channels=channels)
        assert sizes(data) == {"all": {"a": 11, "b": 4}}
        assert data.opened()["all"].sample_shape == (channels, 6, 6)


def write_deep(root, values, suffix="png"):
    """Grey images of one value each, stored in 16 bits, and one of 8 bits."""
    for i, value in enumerate(values):
        path = root / "ab"[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 7), value, np.uint16)).save(path)
    write(root / "a" / "grey.png", 20, "L")
    return root


@pytest.mark.parametrize("limit", [1, 10**6])
@pytest.mark.parametrize(("bits", "suffix"), [(10, "png"), (12, "tif"), (14, "png")])
def test_fewer_bits_than_are_stored(tmp_path, bits, suffix, limit):
    """White is that of the bits for every image, also where all images of a split are dark, and in prediction."""
    white = 2**bits - 1
    root = write_deep(tmp_path / "x" / "train", [0, white, white // 2], suffix)
    write_deep(tmp_path / "x" / "test", [white // 4, white // 5], suffix)
    options = {"channels": 1, "memory_limit": limit}
    with pytest.warns(UserWarning, match=rf"value of the .* {white} of 65535, .*set bits, here probably to {bits}; if"):
        assert everything(folder(tmp_path / "x", **options).opened()["train"]).max() < 0.26
    data = folder(tmp_path / "x", bits=bits, **options)
    parts = data.opened()
    found = {part: (everything(parts[part])[:, 0, 0, 0] * 255).tolist() for part in parts}
    assert found["train"] == pytest.approx([0, 127, 20, 255], abs=0.6)
    assert found["test"] == pytest.approx([64, 20, 51], abs=0.6)
    source, names = data.unlabelled(str(root))
    assert dict(zip(names, everything(source)[:, 0, 0, 0].tolist(), strict=True))[f"b/1.{suffix}"] == 1
    assert data.protocol() == {"image_size": 6, "channels": 1, "bits": bits, "split": "by folders"}
    with pytest.raises(UserError, match=rf"values go from {white} .* 0 \(black\) and {white // 2} \(white\).*bits"):
        everything(folder(tmp_path / "x", bits=bits - 1, **options).opened()["train"])


def test_dark_images_of_sixteen_bits_are_left_alone(tmp_path, recwarn):
    root = write_deep(tmp_path / "x", [200, 300])
    assert everything(folder(root, channels=1, bits=16).opened()["all"]).max() < 0.1
    write_deep(tmp_path / "y", [20_000, 300])
    folder(tmp_path / "y").opened()["all"]
    folder(write_classes(tmp_path / "z", {"a": 2, "b": 2})).opened()["all"]  # 8 bits
    assert not recwarn.list


def test_larger_than_memory(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 10, "b": 6})
    held, drawn = (folder(root, **options).opened()["all"] for options in ({}, {"memory_limit": 1}))
    assert isinstance(held, TensorSource)
    assert isinstance(drawn, ImageFileSource)
    assert torch.equal(everything(held), everything(drawn))


def test_only_the_parts_that_are_asked_for_are_read(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "train" / "9" / "00.png").write_bytes(b"x")
    parts = folder(root).opened()
    assert len(parts["test"]) == 3
    with pytest.raises(UserError, match=r"train/9/00\.png' cannot be read as an image .*set on_bad_sample=skip"):
        parts["train"]


def test_bad_images_are_left_out_on_demand(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "train" / "9" / "00.png").write_bytes(b"x")
    (root / "val" / "empty").mkdir()
    data = folder(root, on_bad_sample="skip")
    assert sizes(data) == {"train": {"9": 2, "10": 4}, "val": {"9": 2}, "test": {"9": 1, "10": 2}}
    assert data.skipped == {"train": 1, "val": 1, "test": 0}


@pytest.mark.parametrize("limit", [1, 10**6])
def test_images_to_label(tmp_path, limit):
    for place in ("b/1.png", "a.JPG", "c.png"):
        write(tmp_path / "new" / place, 50)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    data = folder(tmp_path / "x", memory_limit=limit)
    source, names = data.unlabelled(str(tmp_path / "new"))
    assert names == ("a.JPG", "b/1.png", "c.png")
    assert everything(source).shape == (3, 3, 6, 6)
    (tmp_path / "new" / "b" / "0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"new/b/0\.png' cannot be read .*set on_bad_sample=skip to"):
        data.unlabelled(str(tmp_path / "new"))
    data = folder(tmp_path / "x", on_bad_sample="skip", memory_limit=limit)
    assert data.unlabelled(str(tmp_path / "new"))[1] == ("a.JPG", "b/1.png", "c.png")
    assert data.skipped["predict"] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_converted_image_is_what_training_sees(tmp_path, channels):
    data = folder(write_classes(tmp_path / "x", {"a": 2, "b": 2}), channels=channels)
    with Image.open(tmp_path / "x" / "a" / "01.png") as image:
        assert torch.equal(data.convert(image), data.opened()["all"].read(torch.tensor(1), CPU))


# ---- target domains


def test_a_target_is_sorted_by_the_names_of_the_files_alone(tmp_path):
    root = write_classes(tmp_path / "x", {"b": 2, "a": 3})
    part = folder(root).unlabelled_parts()["all"]
    assert part.withheld.tolist()[-1] == "a"  # 02.png, the only one of its name
    assert sorted(part.withheld.tolist()[:2]) == ["a", "b"]
    flat = tmp_path / "flat"
    for i in range(3):
        write(flat / f"{i}.png", i)
    part = folder(flat).unlabelled_parts()["all"]
    assert part.withheld is None
    assert np.array_equal((everything(part.source)[:, 0, 0, 0] * 255).round().numpy(), [0, 1, 2])
    write(tmp_path / "split" / "train" / "1.png")
    write_classes(tmp_path / "split" / "test", {"a": 2, "b": 2})
    parts = folder(tmp_path / "split").unlabelled_parts()
    assert parts["train"].withheld is None
    assert sorted(parts["test"].withheld) == ["a", "a", "b", "b"]


# ---- lists

CLASSES = {"train": ["a0", "a1"], "val": ["b0", "b1", "b2"], "test": ["c0", "c1", "c2", "c3"]}


def write_lists(root, where):
    write_classes(root / "images", dict.fromkeys([*CLASSES["train"], *CLASSES["val"], *CLASSES["test"]], 4))
    where.mkdir(exist_ok=True)
    for split, labels in CLASSES.items():
        rows = [f"{label}/{i:02d}.png,{label}" for label in labels for i in range(4)]
        (where / f"{split}.csv").write_text("\ufefffilename, label\n" + "\n".join(reversed(rows)) + "\n", "utf-8")
    return root


@pytest.mark.parametrize("given", ["root", "folder", "files"])
def test_lists(tmp_path, given):
    root, where = tmp_path / "x", tmp_path / ("x" if given == "root" else "lists")
    write_lists(root, where)
    files = {split: str(where / f"{split}.csv") for split in CLASSES}
    data = folder(root, split_files={"root": None, "folder": str(where), "files": files}[given])
    assert sizes(data) == {split: dict.fromkeys(names, 4) for split, names in CLASSES.items()}
    assert data.protocol()["split"] == "by lists"
    assert data.divided_by == "class"
    if given == "files":
        assert list(folder(root, split_files={"train": files["train"]}).opened()) == ["train"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,label\nx,a\n", "no column 'filename' .*only name, label"),
        ("", "is empty: the first row must name the columns"),
        ("filename,label\na0/00.png,\n", "line 2: .*'label' is empty"),
        ("filename,label\na0/00.png,a\na0/00.png,a\n", r"names 'a0/00\.png' twice"),
        ("filename,label\na0/00.png,a\ngone.png,a\n", r"names 'gone\.png', which is neither in"),
        ("filename,label\n../../secret.png,a\n", r"names '\.\./\.\./secret\.png', which is neither in"),
        ("filename,label\na0/00.png,B0\n", "two classes of the same name, 'B0' and 'b0'"),
        (b"filename,label\n\xff\xfe,a\n", "line 2: byte 0xff is not UTF-8"),
    ],
)
def test_lists_that_are_wrong(tmp_path, content, words):
    root = write_lists(tmp_path / "x", tmp_path / "x")
    write(tmp_path / "secret.png", 1)
    (root / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        folder(root).opened()["train"]
    assert "\n" not in str(caught.value)


def test_a_list_that_is_missing(tmp_path):
    root = write_lists(tmp_path / "x", tmp_path / "x")
    with pytest.raises(UserError, match=r"'.*tests\.csv' does not exist\. Did you mean test\.csv"):
        folder(root, split_files={"test": str(root / "tests.csv")}).opened()


# ---- mistakes


def make(tmp_path, case):
    root = tmp_path / "x"
    if case == "missing":
        return root
    root.mkdir()
    if case == "flat":
        write(root / "a.png")
    elif case == "wrapped":
        write_classes(root / "data", {"a": 3, "b": 3})
    elif case == "unlabelled test":
        write_splits(root)
        shutil.rmtree(root / "test")
        write(root / "test" / "1.png")
    elif case == "two names":
        write_splits(root, ("train", "val", "valid"))
    elif case == "no training":
        write_splits(root, ("test", "val"))
    elif case == "unknown split":
        write_splits(root, ("train", "holdout"))
    elif case == "twice":
        write_classes(root, {"a": 2})
        (root / "train.csv").write_text("filename,label\na/00.png,a\nb/../a/./00.png,b\n")
        (root / "b").mkdir()
    elif case == "upper":
        write_classes(root, {"a": 5, "A": 5})
    elif case == "empty":
        write_classes(root, {"a": 5})
        (root / "b").mkdir()
    elif case == "all bad":
        for name in "ab":
            (root / name).mkdir()
            (root / name / "1.png").write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("missing", {}, "image folder '.*x' does not exist"),
        ("", {}, "x' has no folders: put the images of each class"),
        ("flat", {}, "x' has no folders: put the images of each class"),
        ("wrapped", {}, "contains only the folder 'data': give the folder that contains"),
        ("unlabelled test", {}, "test' has no folders of classes: .* to be given as predict"),
        ("two names", {}, "has two folders for val, 'val' and 'valid': merge them"),
        ("no training", {}, r"has folders named like splits \(test, val\), but none is for train: rename"),
        ("unknown split", {}, r"has folders named like splits \(train\), but 'holdout' is not a split: rename"),
        ("twice", {}, r"train\.csv' names 'b/\.\./a/\./00\.png' twice"),
        ("upper", {}, "two classes of the same name, 'A' and 'a'"),
        ("empty", {}, "class 'b' has no images; .*on_bad_sample=skip"),
        ("all bad", {"on_bad_sample": "skip"}, "none of its 2 images can be used"),
    ],
)
def test_one_sentence(tmp_path, case, options, words):
    with pytest.raises(UserError, match=words) as caught:
        next(iter(folder(make(tmp_path, case), **options).opened().values()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size must be a number above 0"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3"),
        ({"bits": 4}, "bits must be a whole number from 8 to 32, but is 4"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample must be one of error, skip"),
        ({"split_files": {"valid": "x.csv"}}, "split_files' split must be one of train, val, test"),
    ],
)
def test_one_sentence_of_arguments(options, words):
    with pytest.raises(UserError, match=words):
        folder("x", **options)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("new", "predict folder 'new' does not exist"),
        ("empty", "predict folder 'empty' holds no image"),
        ("bad", "predict folder 'bad': none of its 1 images can be used"),
    ],
)
def test_one_sentence_of_prediction(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        folder("x", on_bad_sample="skip").unlabelled(path)
