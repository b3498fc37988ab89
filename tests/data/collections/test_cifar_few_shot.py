"""CIFAR-FS and FC100: the published classes, both forms of the files, and pickles that must not run."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from metatransfer.data.collections import CIFARFewShot, cifar_few_shot
from metatransfer.data.collections.cifar_few_shot import benchmark_classes
from metatransfer.errors import UserError

SUPERCLASS_OF = {
    name: superclass
    for split in ("train", "val", "test")
    for name, superclass in benchmark_classes("fc100", split).items()
}
NAMES = sorted(SUPERCLASS_OF)  # CIFAR-100's own order is alphabetical


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


def python_files():
    files = {
        name: {"filenames": ["a.png"] * len(labels), "fine_labels": labels.tolist(), "data": pixels}
        for name, (pixels, labels) in PARTS.items()
    }
    return files | {"meta": {"fine_label_names": NAMES, "coarse_label_names": sorted(set(SUPERCLASS_OF.values()))}}


def write_python(folder):
    folder.mkdir()
    for name, content in python_files().items():
        (folder / name).write_bytes(pickle.dumps(content))


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
        assert sorted(name for names in splits for name in names) == NAMES
    assert list(benchmark_classes("cifar_fs", "train"))[:3] == ["apple", "aquarium_fish", "bear"]
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        classes = benchmark_classes("fc100", split)
        assert len(set(classes.values())) == count
        assert set(classes) == {name for name, one in SUPERCLASS_OF.items() if one in classes.values()}


def pixels_of(source):
    return (source.read(torch.arange(len(source)), torch.device("cpu")) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("benchmark", ["cifar_fs", "fc100"])
def test_images_carry_the_label_of_their_class(binary, benchmark):
    data = cifar(binary, benchmark=benchmark)
    pixels, labels = (np.concatenate([one[k] for one in PARTS.values()]) for k in (0, 1))
    for source in data.opened().values():
        assert source.sizes.tolist() == [4] * len(source.class_names)
        served = pixels_of(source).flatten(1).numpy()
        for index in range(0, len(source), 17):
            [found] = np.flatnonzero((pixels == served[index]).all(1))
            assert source.class_names[source.labels[index]] == NAMES[labels[found]]
        assert source.groups == tuple(SUPERCLASS_OF[name] for name in source.class_names)
        assert source.sample_shape == (3, 32, 32)
    assert "Bertinetto" in data.protocol()["split"] or benchmark == "fc100"


def test_the_python_version_gives_the_same_as_the_binary_one(binary, tmp_path, monkeypatch):
    write_python(tmp_path / "cifar-100-python")
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "cifar-100-python").iterdir()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setitem(CIFAR100.meta, "md5", md5["meta"])
    expected = cifar(binary).opened()["test"]
    for root in (tmp_path, tmp_path / "cifar-100-python"):
        source = cifar(root).opened()["test"]
        assert torch.equal(pixels_of(source), pixels_of(expected))
        assert source.labels.tolist() == expected.labels.tolist()


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_of_others_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_python(tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({"data": Hostile()}))
    with pytest.raises(UserError, match=r"MD5 differs.* could run code: unpack CIFAR-100 again"):
        cifar(tmp_path).opened()["train"]
    assert not (tmp_path / "ran").exists()


def test_the_pickle_free_files_come_first(binary, tmp_path):
    write_binary(tmp_path / "cifar-100-binary")
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"never opened")
    assert len(cifar(tmp_path).opened()["test"]) == 80


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.bin", bytes([0, 100]) + bytes(3072), r"labels outside of 0 \.\. 99"),
        ("fine_label_names.txt", b"airplane", "1 classes that are not the 100 of CIFAR-100"),
    ],
)
def test_files_of_another_data_set(tmp_path, name, content, words):
    write_binary(tmp_path / "cifar-100-binary")
    (tmp_path / "cifar-100-binary" / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        cifar(tmp_path).opened()["train"]


def test_a_cut_binary_file(tmp_path):
    write_binary(tmp_path / "cifar-100-binary")
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"test\.bin' has \d+ bytes, not a multiple of the 3074 bytes"):
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
    monkeypatch.setattr(cifar_few_shot, "fetch", lambda urls, md5, target: target.write_bytes(packed))
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
