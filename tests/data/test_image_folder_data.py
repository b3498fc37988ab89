"""Folders of labelled images: the layouts, what is served and what is refused."""

import shutil

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torchvision.transforms import v2

from metatransfer.data.image_folder_data import ImageFolderDataModule
from metatransfer.data.images import ImageFileSource
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def write(path, value=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 7), (value, value, value)).convert(mode).save(path)


def write_classes(root, sizes):
    for c, (name, count) in enumerate(sizes.items()):
        for i in range(count):
            write(root / name / f"{i:02d}.png", 60 * c + i)
    return root


SPLITS = {"train": {"10": 4, "9": 3}, "val": {"9": 2}, "test": {"9": 1, "10": 2}}


def write_splits(root, names=("train", "val", "test")):
    for name, sizes in zip(names, SPLITS.values(), strict=False):
        write_classes(root / name, sizes)
    return root


def folder(root, **options):
    return ImageFolderDataModule(str(root), **{"image_size": 6, "batch_size": 2, **options})


def counts(data):
    return {name: split.counts.tolist() for name, split in data.splits.items()}


def test_plain_folders_are_divided(tmp_path):
    root = write_classes(tmp_path / "x", {"dog": 20, "cat": 10})
    data = folder(root)
    data.setup()
    assert data.class_names == ("cat", "dog")
    assert counts(data) == {"train": [7, 14], "val": [1, 2], "test": [2, 4]}
    assert data.skipped == {"all": 0}
    assert data.sample_shape() == (3, 6, 6)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (2, 3, 6, 6)
    # the grey of an image says its class
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert ((batch.x[:, 0, 0, 0] * 255).round() < 60).long().tolist() == batch.y.tolist()
    again = folder(root)
    assert all(again.split(name).indices.tolist() == split.indices.tolist() for name, split in data.splits.items())
    card = data.protocol()
    assert card["split"] == "stratified at random, seed 0"
    assert (card["image_size"], card["channels"]) == (6, 3)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "validation", "TEST"), ("train", "valid")])
def test_split_folders(tmp_path, names):
    data = folder(write_splits(tmp_path / "x", names))
    assert data.class_names == ("9", "10")  # numbers in their order
    expected = {"train": [3, 4], "val": [2, 0], "test": [1, 2]}
    assert counts(data) == {split: expected[split] for split, _ in zip(expected, names, strict=False)}
    assert data.protocol()["split"] == "as given"


def test_only_training_and_test(tmp_path):
    data = folder(write_splits(tmp_path / "x"))
    shutil.rmtree(tmp_path / "x" / "val")
    assert counts(data) == {"train": [2, 3], "val": [1, 1], "test": [1, 2]}


@pytest.mark.parametrize("packed", [False, True])
def test_only_training(tmp_path, packed):
    write_classes(tmp_path / "x" / "train", {"a": 4, "b": 3})
    root = tmp_path / "x"
    if packed:
        root = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "x")
    data = folder(root)
    assert counts(data) == {"train": [3, 2], "val": [1, 1]}
    with pytest.raises(UserError, match="no test split"):
        data.setup("test")


@pytest.mark.parametrize("make", [write_splits, lambda root: write_classes(root, {"a": 5, "b": 6})])
def test_a_zip_serves_the_same(tmp_path, make):
    root = make(tmp_path / "x")
    one, two = folder(root), folder(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "x"))
    assert counts(one) == counts(two)
    for a, b in zip(one.test_dataloader(), two.test_dataloader(), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


def test_classes_may_be_called_train_and_test(tmp_path):
    data = folder(write_classes(tmp_path / "x", {"train": 4, "test": 4, "bus": 4}))
    assert data.class_names == ("bus", "test", "train")


def test_images_of_any_mode(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 4, "b": 4})
    for i, mode in enumerate(("L", "P", "RGBA", "1", "LA", "I;16", "CMYK")):
        write(root / "a" / f"more{i}.{'tif' if mode == 'CMYK' else 'png'}", 100, mode)
    for channels in (1, 3):
        data = folder(root, channels=channels)
        assert data.sample_shape() == (channels, 6, 6)
        assert counts(data)["train"] == [8, 2]


def test_larger_than_memory(tmp_path):
    root = write_classes(tmp_path / "x", {"a": 10, "b": 6})
    held, drawn = folder(root), folder(root, memory_limit=1)
    assert isinstance(held.split("train").source, TensorSource)
    assert isinstance(drawn.split("train").source, ImageFileSource)
    drawn.num_workers = 1
    for one, two in zip(held.train_dataloader(), drawn.train_dataloader(), strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.number, two.number)


def test_bad_images_are_left_out_on_demand(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "train" / "9" / "00.png").write_bytes(b"x")
    (root / "val" / "empty").mkdir()
    with pytest.raises(UserError, match=r"train/9/00\.png' cannot be read as an image .*set on_bad_sample=skip"):
        folder(root).setup("fit")
    data = folder(root, on_bad_sample="skip")
    assert counts(data) == {"train": [2, 4], "val": [2, 0], "test": [1, 2]}
    assert data.skipped == {"train": 1, "val": 1, "test": 0}


@pytest.mark.parametrize("limit", [1, 10**6])
def test_predict(tmp_path, limit):
    write_classes(tmp_path / "x", {"a": 4, "b": 4})
    for place in ("b/1.png", "a.JPG", "c.png"):
        write(tmp_path / "new" / place, 50)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    options = {"predict": str(tmp_path / "new"), "memory_limit": limit, "transform": [v2.Resize(4)]}
    data = folder(tmp_path / "x", **options)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.files for batch in batches] == [("a.JPG", "b/1.png"), ("c.png",)]
    assert [batch.x.shape for batch in batches] == [(2, 3, 4, 4), (1, 3, 4, 4)]
    assert data.skipped["predict"] == 0
    (tmp_path / "new" / "b" / "0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"new/b/0\.png' cannot be read .*set on_bad_sample=skip to label the others"):
        folder(tmp_path / "x", **options).setup("predict")
    data = folder(tmp_path / "x", on_bad_sample="skip", **options)
    assert [name for batch in data.predict_dataloader() for name in batch.files] == ["a.JPG", "b/1.png", "c.png"]
    assert data.skipped["predict"] == 1


def test_oversampling(tmp_path):
    data = folder(write_classes(tmp_path / "x", {"a": 40, "b": 6}), balance="oversample", batch_size=32)
    assert next(iter(data.train_dataloader())).y.bincount().tolist() == [16, 16]


def test_show(tmp_path):
    data = folder(write_splits(tmp_path / "x"))
    assert data.show("test", 0).shape == (3, 6, 6)
    assert data.show("test", 0).max() <= 1


def test_the_command_line_knows_the_arguments_of_the_base():
    parser = ArgumentParser()
    parser.add_class_arguments(ImageFolderDataModule, "data")
    options = parser.parse_args(["--data.root=x", "--data.labels_per_class=5", "--data.balance=oversample"]).data
    assert (options.image_size, options.labels_per_class, options.batch_size) == (224, 5, 32)


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
    elif case == "unseen":
        write_splits(root)
        write(root / "val" / "11" / "1.png")
    elif case == "one class":
        write_classes(root, {"a": 5})
    elif case == "small":
        write_classes(root, {"a": 5, "b": 2})
    elif case == "upper":
        write_classes(root, {"a": 5, "A": 5})
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
        ("wrapped", {}, "holds the folder 'data' and nothing else: give the folder that holds"),
        ("unlabelled test", {}, "test' has no folders of classes: .* to be given as predict"),
        ("two names", {}, "has two folders for val, 'val' and 'valid': merge them"),
        ("unseen", {}, "x' val has a class that the training has no sample of .'11'"),
        ("one class", {}, r"x' has one class only \('a'\)"),
        ("small", {}, "class 'b' has 2 samples, but needs one for each of train, val, test"),
        ("upper", {}, "two classes of one name, 'A' and 'a'"),
        ("all bad", {"on_bad_sample": "skip"}, "none of the 2 images and classes can be used"),
    ],
)
def test_one_sentence(tmp_path, case, options, words):
    with pytest.raises(UserError, match=words) as caught:
        folder(make(tmp_path, case), **options).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size must be a number above 0"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample must be one of error, skip"),
        ({"memory_limit": 0}, "memory_limit must be a number above 0"),
        ({}, "nothing is given to label: set predict to a folder of images"),
        ({"predict": "new"}, "predict folder 'new' does not exist"),
        ({"predict": "x"}, "predict folder 'x' holds no image"),
        ({"predict": "bad", "on_bad_sample": "skip"}, "predict folder 'bad': none of its 1 images can be used"),
    ],
)
def test_one_sentence_of_arguments(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    for name in ("x", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match=words) as caught:
        folder(tmp_path / "x", **options).setup("predict")
    assert "\n" not in str(caught.value)
