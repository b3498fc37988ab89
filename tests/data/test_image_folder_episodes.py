"""Folders of images: the three layouts, the division of classes, and what is refused."""

import shutil
from itertools import chain

import pytest
import torch
from PIL import Image

from metatransfer.data import TensorSource
from metatransfer.data.image_folder_episodes import ImageFolderEpisodes
from metatransfer.data.images import ImageFileSource
from metatransfer.errors import UserError

SHAPE = {"num_ways": 2, "num_shots": 1, "num_queries": 2, "tasks_per_batch": 2, "image_size": 6}
RUN = {"train_episodes": 4, "val_episodes": 2, "test_episodes": 2}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def write(path, seed):
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.randint(0, 256, (7, 8, 3), generator=generator, dtype=torch.uint8).numpy()).save(path)


def write_classes(root, names, images=4):
    for c, name in enumerate(names):
        for i in range(images):
            write(root / name / f"{i}.png", 100 * c + i)
    return root


def write_splits(root, val="val"):
    for s, split in enumerate(("train", val, "test")):
        write_classes(root / split, [f"{'abc'[s]}{c}" for c in range(2 + s)])
    return root


def folder(root, **options):
    return ImageFolderEpisodes(str(root), **{**SHAPE, **RUN, **options})


def names(data):
    data.setup()
    return {split: list(sampler.source.class_names) for split, sampler in data.samplers.items()}


SPLIT_NAMES = {"train": ["a0", "a1"], "val": ["b0", "b1", "b2"], "test": ["c0", "c1", "c2", "c3"]}


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path, val):
    data = folder(write_splits(tmp_path / "x", val))
    assert names(data) == SPLIT_NAMES
    assert data.skipped == {"train": 0, "val": 0, "test": 0}
    assert data.protocol()["split"] == "by folders"
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (2, 2, 3, 6, 6)
    assert 0 <= batch.query_x.min() <= batch.query_x.max() <= 1


def test_a_zip_serves_the_same(tmp_path):
    root = write_splits(tmp_path / "x")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "x")
    one, two = folder(root), folder(packed)
    assert names(one) == names(two)
    for index in range(2):
        assert torch.equal(one.episode("test", index).support_x, two.episode("test", index).support_x)


def test_only_the_splits_of_the_stage_are_read(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "train" / "a0" / "0.png").write_bytes(b"x")
    data = folder(root)
    data.setup("test")
    assert list(data.samplers) == ["test"]
    with pytest.raises(UserError, match=r"train/a0/0\.png"):
        data.setup("fit")


def test_bad_samples_are_counted_by_split(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "val" / "b0" / "0.png").write_bytes(b"x")
    (root / "test" / "empty").mkdir()
    with pytest.raises(UserError, match="class 'empty' holds no image"):
        folder(root).setup("test")
    data = folder(root, on_bad_sample="skip")
    assert names(data) == SPLIT_NAMES
    assert data.skipped == {"train": 0, "val": 1, "test": 1}


def test_a_class_in_two_splits(tmp_path):
    root = write_splits(tmp_path / "x")
    write_classes(root / "test", ["A0"])
    with pytest.raises(UserError, match=r"class 'A0' of test is also in train \(as 'a0'\)"):
        folder(root).setup("fit")


def test_a_missing_split_folder(tmp_path):
    root = write_splits(tmp_path / "x")
    shutil.rmtree(root / "val")
    folder(root).setup("test")
    with pytest.raises(UserError, match=r"none for val \(val or valid or validation\)"):
        folder(root).setup("fit")


def test_classes_may_be_called_train_and_test(tmp_path):
    data = folder(write_classes(tmp_path / "x", ["train", "test", "bus", "car", "van", "cab"]))
    assert sorted(chain(*names(data).values())) == ["bus", "cab", "car", "test", "train", "van"]


# ---- plain folders


def test_classes_are_divided_by_seed(tmp_path):
    root = write_classes(tmp_path / "x", [f"c{c:02d}" for c in range(20)])
    divided = names(folder(root, num_ways=3))
    assert {split: len(found) for split, found in divided.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted(chain(*divided.values())) == [f"c{c:02d}" for c in range(20)]
    assert names(folder(root, num_ways=3)) == divided
    other = folder(root, num_ways=3, split_seed=1)
    assert names(other) != divided
    assert "seed 1" in other.protocol()["split"]
    assert {s: len(n) for s, n in names(folder(root, num_ways=6)).items()} == {"train": 8, "val": 6, "test": 6}
    more = folder(root, num_ways=5, val_fraction=0.4, test_fraction=0.5)
    assert {split: len(found) for split, found in names(more).items()} == {"train": 5, "val": 7, "test": 8}


def test_the_division_never_changes(tmp_path):
    """People compare numbers across machines and versions."""
    divided = names(folder(write_classes(tmp_path / "x", list("abcdefgh"), images=3)))
    assert divided == {"train": ["b", "d", "e", "g"], "val": ["f", "h"], "test": ["a", "c"]}


def test_too_few_classes(tmp_path):
    root = write_classes(tmp_path / "x", list("abcdefg"))
    with pytest.raises(UserError, match=r"has 7 folders of classes, but three splits need 3 \+ 3 \+ 3 = 9 for 3-way"):
        folder(root, num_ways=3).setup("fit")
    assert {s: len(n) for s, n in names(folder(root, num_ways=3, eval_num_ways=2)).items()} == {
        "train": 3, "val": 2, "test": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match="has 0 folders of classes"):
        folder(root / "a").setup("fit")


def test_too_few_images_in_a_class(tmp_path):
    root = write_splits(tmp_path / "x")
    (root / "train" / "a1" / "0.png").unlink()
    (root / "train" / "a1" / "1.png").unlink()
    with pytest.raises(UserError, match=r"class 'a1' has 2 samples, but 1 shots \+ 2 queries"):
        folder(root).setup("fit")


# ---- lists


def write_lists(root, where):
    write_classes(root / "images", SPLIT_NAMES["train"] + SPLIT_NAMES["val"] + SPLIT_NAMES["test"])
    where.mkdir(exist_ok=True)
    for split, labels in SPLIT_NAMES.items():
        rows = [f"{label}/{i}.png,{label}" for label in labels for i in range(4)]
        (where / f"{split}.csv").write_text("\ufefffilename, label\n" + "\n".join(reversed(rows)) + "\n", "utf-8")
    return root


@pytest.mark.parametrize("given", ["root", "folder", "files"])
def test_lists(tmp_path, given):
    root, where = tmp_path / "x", tmp_path / ("x" if given == "root" else "lists")
    root.mkdir()
    write_lists(root, where)
    files = {split: str(where / f"{split}.csv") for split in SPLIT_NAMES}
    data = folder(root, split_files={"root": None, "folder": str(where), "files": files}[given])
    assert names(data) == SPLIT_NAMES
    assert data.protocol()["split"] == "by lists"
    assert data.samplers["test"].source.sizes.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,label\nx,a\n", "must have a column 'filename' in its first row, but has name, label"),
        ("", "must have a column 'filename' in its first row, but has none"),
        ("filename,label\na0/0.png,\n", "line 2: filename or label is empty"),
        ("filename,label\na0/0.png\n", "line 2: filename or label is empty"),
        ("filename,label\na0/0.png,a\na0/0.png,a\n", r"names 'a0/0\.png' twice"),
        ("filename,label\na0/0.png,a\ngone.png,a\n", r"names 'gone\.png', which is neither in"),
        ("filename,label\n../../secret.png,a\n", r"names '\.\./\.\./secret\.png', which is neither in"),
        ("filename,label\na0/0.png,B0\n", r"class 'b0' of val is also in train \(as 'B0'\)"),
        (b"filename,label\n\xff\xfe,a\n", "cannot be read as a CSV file"),
    ],
)
def test_lists_that_are_wrong(tmp_path, content, words):
    root = tmp_path / "x"
    root.mkdir()
    write_lists(root, root)
    write(tmp_path / "secret.png", 1)
    (root / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        folder(root).setup("fit")
    assert "train" in str(caught.value)


def test_lists_that_are_missing(tmp_path):
    root = tmp_path / "x"
    root.mkdir()
    write_lists(root, root)
    with pytest.raises(UserError, match="split_files has no list for val, only for train"):
        folder(root, split_files={"train": str(root / "train.csv")}).setup("fit")
    with pytest.raises(UserError, match=r"split file '.*tests\.csv' does not exist\. Did you mean test\.csv"):
        folder(root, split_files={"test": str(root / "tests.csv")}).setup("test")


# ---- the rest


def test_large_sets_are_read_by_workers_and_give_the_same(tmp_path):
    root = write_splits(tmp_path / "x")
    held, lazy = folder(root), folder(root, memory_limit=10, num_workers=2)
    held.setup("fit")
    lazy.setup("fit")
    assert isinstance(held.samplers["train"].source, TensorSource)
    assert isinstance(lazy.samplers["train"].source, ImageFileSource)
    for one, two in zip(held.train_dataloader(), lazy.train_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_convert_image_is_what_training_sees(tmp_path, channels):
    root = write_splits(tmp_path / "x")
    data = folder(root, channels=channels)
    data.setup("fit")
    with Image.open(root / "train" / "a0" / "0.png") as image:
        sample = data.convert_image(image)
    source = data.samplers["train"].source
    assert torch.equal(sample, source.read(torch.tensor(0), torch.device("cpu")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "must be below 1 to leave training classes"),
        ({"val_fraction": 0}, "val_fraction must be a number above 0"),
        ({"on_bad_sample": "skipp"}, "on_bad_sample must be one of error, skip, but is 'skipp'. Did you mean skip"),
        ({"channels": 4}, "channels must be 1"),
        ({"image_size": 0}, "image_size must be a number above 0"),
        ({"split_files": {"valid": "x.csv"}}, "split_files' split must be one of train, val, test"),
        ({"num_ways": 0}, "num_ways"),
    ],
)
def test_impossible_arguments(options, words):
    with pytest.raises(UserError, match=words):
        folder("x", **options)


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match=r"image folder '.*nothing' does not exist"):
        folder(tmp_path / "nothing").setup("fit")
