"""Data sets of torchvision, from tiny files as it lays them out."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from metatransfer.data.collections import TorchvisionDataset
from metatransfer.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = {
    split: RNG.integers(0, 256, (count, 6, 6), dtype=np.uint8) for split, count in {"train": 40, "test": 20}.items()
}
LABELS = {"train": RNG.permutation(np.arange(40) % 10), "test": RNG.permutation(np.arange(20) % 5)}


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(IMAGES[split]))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx(LABELS[split]))
    return tmp_path


def write_dtd(root, sizes=((8, 8),)):
    """Describable textures: images of a folder and lists of its three splits."""
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    pixels = {}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        names = [f"{texture}/{texture}_{split}_{n}.png" for n in range(count) for texture in ("banded", "woven")]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        pixels[split] = []
        for number, name in enumerate(names):
            path = base / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = sizes[number % len(sizes)]
            image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(path)
            pixels[split].append(image)
    return pixels


def test_train_and_test_by_train(fashion):
    data = TorchvisionDataset("FashionMNIST", str(fashion))
    assert {name: len(source) for name, source in data.opened().items()} == {"train": 40, "test": 20}
    assert data.opened()["train"].class_names == tuple(datasets.FashionMNIST.classes)
    for split, source in data.opened().items():
        assert source.data.dtype == torch.uint8
        assert np.array_equal(source.data[:, 0].numpy(), IMAGES[split])
        expected = [datasets.FashionMNIST.classes[label] for label in LABELS[split]]
        assert [source.class_names[label] for label in source.labels] == expected
    assert data.opened()["test"].sizes.tolist() == [4] * 5
    protocol = data.protocol()
    assert (protocol["name"], protocol["image_size"], protocol["channels"]) == ("FashionMNIST", 6, 1)


def test_size_and_channels(fashion):
    data = TorchvisionDataset("FashionMNIST", str(fashion), image_size=9, channels=3)
    assert data.opened()["train"].sample_shape == (3, 9, 9)
    expected = np.asarray(Image.fromarray(IMAGES["test"][3]).resize((9, 9), Image.Resampling.BILINEAR))
    assert np.array_equal(data.opened()["test"].data[3].numpy(), np.stack([expected] * 3))


def test_three_splits_by_split(tmp_path):
    pixels = write_dtd(tmp_path)
    data = TorchvisionDataset("DTD", str(tmp_path))
    assert {name: len(source) for name, source in data.opened().items()} == {"train": 8, "val": 4, "test": 4}
    for split, images in pixels.items():
        found = data.opened()[split]
        assert found.class_names == ("banded", "woven")
        assert np.array_equal(found.data.permute(0, 2, 3, 1).numpy(), np.stack(images))
        assert found.labels.tolist() == [0, 1] * (len(images) // 2)


def test_a_target_comes_in_an_order_that_tells_no_labels(fashion):
    data = TorchvisionDataset("FashionMNIST", str(fashion))
    known, target = data.parts()["train"], data.unlabelled_parts()["train"]
    read = {image.numpy().tobytes(): label for image, label in zip(known.data, known.labels, strict=True)}
    images = target.source.read(torch.arange(40), torch.device("cpu")).mul(255).round().to(torch.uint8)
    assert [known.class_names[read[image.numpy().tobytes()]] for image in images] == target.withheld.tolist()
    raw = fashion / "FashionMNIST" / "raw"
    order = np.argsort(LABELS["train"], kind="stable")
    (raw / "train-images-idx3-ubyte").write_bytes(idx(IMAGES["train"][order]))
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(LABELS["train"][order]))
    again = TorchvisionDataset("FashionMNIST", str(fashion)).unlabelled_parts()["train"]
    assert again.source.fingerprint() == target.source.fingerprint()
    assert again.withheld.tolist() == target.withheld.tolist()


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_dtd(tmp_path, ((8, 8), (8, 6)))
    with pytest.raises(UserError, match="DTD train: image 1 is 8x6 pixels in 3 channels, but the first is 8x8"):
        TorchvisionDataset("DTD", str(tmp_path)).parts()
    assert TorchvisionDataset("DTD", str(tmp_path), image_size=5).opened()["train"].sample_shape == (3, 5, 5)


def test_a_split_that_the_data_set_does_not_have_is_left_out(tmp_path, monkeypatch):
    images = RNG.integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
    files = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": 1 + np.arange(30)[:, None] % 10})
        files[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    data = TorchvisionDataset("SVHN", str(tmp_path))
    assert list(data.opened()) == ["train", "test"]  # torchvision's SVHN has no validation
    assert data.opened()["train"].class_names == tuple("0123456789")  # and names no classes
    assert np.array_equal(data.opened()["test"].data[3].numpy(), images[..., 3].transpose(2, 0, 1))
    monkeypatch.delitem(files, "test")
    assert list(TorchvisionDataset("SVHN", str(tmp_path)).opened()) == ["train"]


def test_pickles_of_cifar_are_not_read_unless_they_are_the_known_ones(tmp_path):
    ran = tmp_path / "ran"

    class Unsafe:
        def __reduce__(self):
            return (type(ran).touch, (ran,))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Unsafe()))
    with pytest.raises(UserError, match="torchvision cannot read train of CIFAR10 from"):
        TorchvisionDataset("CIFAR10", str(tmp_path)).parts()
    assert not ran.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert ran.exists()  # it would have run


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CIFAR11", "but 'CIFAR11' does not exist. Did you mean CIFAR10"),
        ("fashionmnist", "but 'fashionmnist' does not exist. Did you mean FashionMNIST"),
        ("FakeData", "'FakeData' takes other arguments than root and train or split"),
        ("EMNIST", "'EMNIST' takes other arguments"),
        ("ImageFolder", "'ImageFolder' takes other arguments"),
        ("os", "'os' does not exist"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UserError) as caught:
        TorchvisionDataset(name, "nowhere")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(tmp_path, fashion):
    with pytest.raises(UserError, match=r"MNIST folder '.*nowhere' does not exist"):
        TorchvisionDataset("MNIST", str(tmp_path / "nowhere")).parts()
    for name in ("CIFAR100", "STL10", "MNIST", "GTSRB"):
        with pytest.raises(UserError, match=f"put its files there as torchvision.datasets.{name} lays them") as caught:
            TorchvisionDataset(name, str(tmp_path)).parts()
        assert "\n" not in str(caught.value)
    (fashion / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03text")
    with pytest.raises(UserError, match="torchvision cannot read train of FashionMNIST"):
        TorchvisionDataset("FashionMNIST", str(fashion)).parts()


def test_damaged_images_and_other_labels(tmp_path, monkeypatch):
    write_dtd(tmp_path)
    data = TorchvisionDataset("DTD", str(tmp_path))
    monkeypatch.setattr(datasets.DTD, "__getitem__", lambda self, number: (Image.new("L", (4, 4)), "banded"))
    with pytest.raises(UserError, match="DTD train: sample 0 is a Image with the label banded, but must be an image"):
        data.parts()
    monkeypatch.undo()
    (tmp_path / "dtd" / "dtd" / "images" / "woven" / "woven_train_1.png").write_bytes(b"text")
    with pytest.raises(UserError, match="DTD train: sample 3 cannot be read") as caught:
        data.parts()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"image_size": 0}, "image_size must be a number above 0"), ({"channels": 2}, "channels must be 1")],
)  # fmt: skip
def test_impossible_arguments(options, words):
    with pytest.raises(UserError, match=words):
        TorchvisionDataset("MNIST", "nowhere", **options)
