"""CIFAR-FS and FC100: the published classes, both forms of the files, and pickles that must not run."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data.collections import CIFARFewShot
from metatransfer.data.collections.cifar_few_shot import SUPERCLASSES, benchmark_classes
from metatransfer.data.readers import cifar_files
from metatransfer.errors import UserError

NAMES = sorted(name for names in SUPERCLASSES.values() for name in names)  # CIFAR-100's own order is alphabetical


def part(seed, each):
    labels = np.random.default_rng(seed).permutation(np.arange(100).repeat(each))
    return np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8), labels


PARTS = {"train": part(0, 3), "test": part(1, 1)}


def write_binary(folder):
    folder.mkdir()
    for name, (pixels, labels) in PARTS.items():
        records = np.concatenate([np.zeros((len(labels), 1)), labels[:, None], pixels], axis=1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n\n")


def python2(content):
    """A pickle as Python 2 wrote CIFAR-100: words and bytes alike as byte strings, protocol 2."""

    def word(raw):
        raw = raw.encode() if isinstance(raw, str) else raw
        return (b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw + b"q\x00"

    def value(one):
        if isinstance(one, np.ndarray):
            dtype = b"cnumpy\ndtype\n(" + word("u1") + b"K\x00K\x01tR(K\x03" + word("|") + b"NNNJ\xff\xff\xff\xffJ\xff"
            dtype += b"\xff\xff\xffK\x00tb"
            shape = b"".join(b"J" + struct.pack("<i", n) for n in one.shape)
            start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + word("b") + b"tR"
            return start + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + word(one.tobytes()) + b"tb"
        if isinstance(one, list):
            return b"]q\x01(" + b"".join(value(item) for item in one) + b"e"
        return word(one) if isinstance(one, str) else b"K" + bytes([one])

    return b"\x80\x02}q\x02(" + b"".join(word(key) + value(one) for key, one in content.items()) + b"u."


def python_files():
    files = {
        name: {"filenames": ["a.png"] * len(labels), "fine_labels": labels.tolist(), "data": pixels}
        for name, (pixels, labels) in PARTS.items()
    }
    return files | {"meta": {"fine_label_names": NAMES, "coarse_label_names": list(SUPERCLASSES)}}


def write_python(folder, dump):
    folder.mkdir()
    for name, content in python_files().items():
        (folder / name).write_bytes(dump(content))


DUMPS = {f"protocol {n}": (lambda content, n=n: pickle.dumps(content, protocol=n)) for n in (2, 3, 4, 5)}
DUMPS["Python 2"] = python2
DUMPS["bytes"] = lambda content: pickle.dumps({key.encode(): value for key, value in content.items()})


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    write_binary(root / "cifar-100-binary")
    return root


def cifar(root, **options):
    return CIFARFewShot(str(root), **options)


def test_the_published_classes():
    assert len(NAMES) == len(set(NAMES)) == 100
    for benchmark, counts in (("cifar_fs", (64, 16, 20)), ("fc100", (60, 20, 20))):
        splits = [benchmark_classes(benchmark, split) for split in ("train", "val", "test")]
        assert tuple(map(len, splits)) == counts
        assert sorted(sum(splits, ())) == NAMES
    assert benchmark_classes("cifar_fs", "train")[:3] == ("apple", "aquarium_fish", "bear")
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        classes = benchmark_classes("fc100", split)
        touched = [superclass for superclass, names in SUPERCLASSES.items() if set(names) & set(classes)]
        assert len(touched) == count
        assert all(set(SUPERCLASSES[superclass]) <= set(classes) for superclass in touched)


def test_torchvision_agrees_on_the_file_names():
    from torchvision.datasets import CIFAR100

    assert CIFAR100.base_folder == "cifar-100-python"
    assert CIFAR100.train_list[0][0] == "train"
    assert CIFAR100.meta["key"] == "fine_label_names"


@pytest.mark.parametrize("benchmark", ["cifar_fs", "fc100"])
def test_images_carry_the_label_of_their_class(binary, benchmark):
    data = cifar(binary, benchmark=benchmark)
    pixels, labels = (np.concatenate([one[k] for one in PARTS.values()]) for k in (0, 1))
    for source in data.opened().values():
        assert source.sizes.tolist() == [4] * len(source.class_names)
        for index in range(0, len(source), 17):
            [found] = np.flatnonzero((pixels == source.data[index].numpy().reshape(-1)).all(1))
            assert source.class_names[source.labels[index]] == NAMES[labels[found]]
        assert source.groups[0] == next(s for s, names in SUPERCLASSES.items() if source.class_names[0] in names)
        assert source.sample_shape == (3, 32, 32)
    assert "Bertinetto" in data.protocol()["split"] or benchmark == "fc100"


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_pickles_give_the_same_as_the_binary_files(binary, tmp_path, dump):
    write_python(tmp_path / "cifar-100-python", dump)
    one, two, inner = cifar(binary), cifar(tmp_path), cifar(tmp_path / "cifar-100-python")
    for data in (one, two, inner):
        source = data.opened()["test"]
        assert torch.equal(source.data, one.opened()["test"].data)
        assert source.labels.tolist() == one.opened()["test"].labels.tolist()


def test_the_pickle_free_files_come_first(binary, tmp_path):
    write_binary(tmp_path / "cifar-100-binary")
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"never opened")
    assert len(cifar(tmp_path).opened()["test"]) == 80


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train", {"data": np.zeros((3, 3072), np.uint8)}, "must hold 'data', uint8 .* but holds data with 0 labels"),
        ("train", {"data": np.zeros((1, 9), np.uint8), "fine_labels": [1]}, "with 1 labels"),
        ("train", {"fine_labels": [1]}, "must hold 'data'"),
        ("test", {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}, r"labels outside of 0 \.\. 99"),
        ("meta", {"fine_label_names": ["airplane"]}, "1 classes that are not the 100 of CIFAR-100"),
        ("meta", {"label_names": NAMES}, "0 classes that are not the 100"),
    ],
)
def test_other_content_is_refused(tmp_path, name, content, words):
    write_python(tmp_path / "cifar-100-python", pickle.dumps)
    (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words):
        cifar(tmp_path).opened()["train"]


def test_a_cut_binary_file(tmp_path):
    write_binary(tmp_path / "cifar-100-binary")
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"test\.bin' has \d+ bytes, no multiple of the 3074 of an image"):
        cifar(tmp_path).opened()["train"]


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"CIFAR-100 is not in .* put the folder cifar-100-binary"):
        cifar(tmp_path).opened()["train"]


def archive_of(folder, extra=()):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        tar.add(folder, "cifar-100-binary")
        for name in extra:
            tar.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def test_download_takes_only_the_files_it_knows(binary, tmp_path, monkeypatch):
    packed = archive_of(binary / "cifar-100-binary", ["../evil", "cifar-100-binary/more"])
    monkeypatch.setattr(cifar_files, "fetch", lambda urls, md5, target: target.write_bytes(packed))
    root = tmp_path / "data"
    root.mkdir()
    data = cifar(root, download=True)
    data.prepare()
    assert len(data.opened()["test"].class_names) == 20
    assert not (tmp_path / "evil").exists()
    assert sorted(path.name for path in (root / "cifar-100-binary").iterdir()) == [
        "fine_label_names.txt", "test.bin", "train.bin",
    ]  # fmt: skip


def test_a_damaged_archive(tmp_path):
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot be unpacked .* remove it, so that it is downloaded again"):
        cifar(tmp_path, download=True).opened()["train"]


def test_conversion_and_arguments():
    data = cifar("x")
    assert data.convert(Image.new("L", (50, 40), 255)).shape == (3, 32, 32)
    with pytest.raises(UserError, match=r"benchmark must be one of cifar_fs, fc100, but is 'cifarfs'\. Did you mean"):
        cifar("x", benchmark="cifarfs")
