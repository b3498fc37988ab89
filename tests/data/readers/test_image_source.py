"""Image files are served alike from trees, zips, memory and disk; bad ones are refused or counted."""

import pickle
import struct

import pytest
import torch
from image_trees import CPU, everything, opened, picture, write_tree, write_zip

from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import ImageFileSource, ImageReader, check_class_names
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def test_tree_and_zip_give_equal_tensors(tmp_path):
    root = write_tree(tmp_path / "tree")
    (root / ".hidden").mkdir()
    (root / "class 0" / "notes.txt").write_text("no image")
    (root / "class 0" / ".thumb.png").write_bytes(b"no image")
    (root / "class 1" / "deeper").mkdir()
    picture(99).save(root / "class 1" / "deeper" / "x.PNG")
    sources = [opened(root)[0]]
    sources += [opened(write_zip(tmp_path / f"{n}.zip", root, prefix))[0] for n, prefix in enumerate(("", "wrap/per/"))]
    for source in sources:
        assert isinstance(source, TensorSource)
        assert source.class_names == ("class 0", "class 1", "class 2")
        assert source.sizes.tolist() == [4, 5, 4]
        assert torch.equal(source.data, sources[0].data)
        assert source.labels.tolist() == sources[0].labels.tolist()
    lazy, count = opened(tmp_path / "1.zip", memory_limit=10)
    assert isinstance(lazy, ImageFileSource)
    assert count == 0
    assert lazy.file(0).name == "wrap/per/class 0/0.png"
    assert torch.equal(everything(lazy), everything(sources[0]))
    on_disk, _ = opened(root, memory_limit=10)
    assert torch.equal(everything(on_disk), everything(sources[0]))
    assert on_disk.read(torch.tensor([[0, 3, 1]]), CPU).shape == (1, 3, 3, 6, 6)
    assert on_disk.read(torch.empty(2, 0, dtype=torch.int64), CPU).shape == (2, 0, 3, 6, 6)
    assert torch.equal(everything(pickle.loads(pickle.dumps(lazy))), everything(lazy))


def test_forked_readers_of_one_zip_do_not_disturb_each_other(tmp_path):
    root = write_tree(tmp_path / "tree", classes=4, images=10)
    lazy, _ = opened(write_zip(tmp_path / "a.zip", root), memory_limit=10)
    expected = everything(lazy)  # opens the zip in this process, before the workers start
    loader = torch.utils.data.DataLoader(_Reads(lazy), batch_size=None, num_workers=2)
    for _ in range(2):
        assert torch.equal(torch.stack(list(loader)), expected)


class _Reads(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.read(torch.tensor(index), CPU)


def test_a_damaged_zip_member_is_named(tmp_path):
    root = write_tree(tmp_path / "tree")
    path = write_zip(tmp_path / "a.zip", root)
    content = path.read_bytes()
    position = content.index((root / "class 1" / "2.png").read_bytes())
    path.write_bytes(content[: position + 60] + b"\xff" * 20 + content[position + 80 :])
    with pytest.raises(UserError, match=r"'class 1/2\.png' in '.*a\.zip' cannot be unpacked"):
        opened(path)
    assert opened(path, on_bad_sample="skip")[1] == 1


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut", "struct"])
@pytest.mark.parametrize("limit", [2**30, 10])
def test_a_corrupt_image_is_named_or_skipped_and_counted(tmp_path, content, limit):
    root = write_tree(tmp_path / "tree", suffix="jpg")
    bad = root / "class 1" / "1.jpg"
    cut = content == "cut"
    if cut:
        content = bad.read_bytes()[:-60]
    if content == "struct":
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + b"\0" * 30
    bad.write_bytes(content)
    if limit == 10 and cut:
        source, count = opened(root, memory_limit=limit)  # only headers are read at set-up
        assert count == 0
        with pytest.raises(UserError, match=r"class 1/1\.jpg' cannot be read as an image"):
            everything(source)
        return
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=r"class 1/1\.jpg' cannot be read as an image .* on_bad_sample=skip to"):
            opened(root, memory_limit=limit)
        source, count = opened(root, on_bad_sample="skip", memory_limit=limit)
        assert count == 1
        assert source.sizes.tolist() == [4, 3, 4]
        assert everything(source).shape == (11, 3, 6, 6)


@pytest.mark.parametrize("damaged", [["class 0/0.jpg"], None])
def test_damaged_images_beyond_the_memory_limit_do_not_prevent_the_opening(tmp_path, damaged):
    root = write_tree(tmp_path / "tree", suffix="jpg")
    for path in [root / name for name in damaged] if damaged else root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-60])
    source, count = opened(root, on_bad_sample="skip", memory_limit=10)  # only headers are read at set-up
    assert (len(source), count) == (12, 0)
    with pytest.raises(UserError, match=r"class 0/0\.jpg' cannot be read as an image"):
        everything(source)


def test_several_problems_give_the_first_and_a_count(tmp_path):
    root = write_tree(tmp_path / "tree")
    for name in ("class 0/0.png", "class 2/3.png"):
        (root / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 0/0\.png' .* on_bad_sample=skip .* cannot be used, 2 here\."):
        opened(root)


def test_an_empty_class_is_named_or_left_out(tmp_path):
    root = write_tree(tmp_path / "tree")
    (root / "class 9").mkdir()
    with pytest.raises(UserError, match=r"Toys: class 'class 9' has no images"):
        opened(root)
    source, count = opened(root, on_bad_sample="skip", groups={f"class {c}": f"g{c}" for c in (0, 1, 2, 9)})
    assert count == 1
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert source.groups == ("g0", "g1", "g2")


def test_a_class_that_loses_all_images_is_left_out(tmp_path):
    root = write_tree(tmp_path / "tree", images=1)
    (root / "class 1" / "0.png").write_bytes(b"x")
    source, count = opened(root, on_bad_sample="skip")
    assert count == 1
    assert source.class_names == ("class 0", "class 2")
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Cat", "dog", "cat"], "toys has two classes of the same name, 'Cat' and 'cat'"),
        (["caf\u00e9", "cafe\u0301"], "two classes of the same name"),
    ],
)
def test_class_names_that_clash(names, words):
    with pytest.raises(UserError, match=words):
        check_class_names(names, "toys")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"on_bad_sample": "skipp"}, "Did you mean skip"), ({"memory_limit": 0}, "memory_limit must be")],
)
def test_impossible_arguments(options, words):
    with pytest.raises(UserError, match=words):
        ImageReader(ImageLook(4), **options)
