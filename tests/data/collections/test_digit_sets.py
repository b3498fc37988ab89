"""The usual digit data sets, from tiny files of their formats."""

import bz2
import gzip
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from conftest import best_checkpoint, results
from metatransfer import LabelledDataModule
from metatransfer.data.collections import MNIST, MNISTM, SVHN, SYN, USPS
from metatransfer.data.readers import digit_files
from metatransfer.errors import UserError


@dataclass
class Part:
    """Images ``(N, H, W[, 3])`` and labels of a split."""

    images: np.ndarray
    labels: np.ndarray


def part(count, side, colour, seed):
    rng = np.random.default_rng(seed)
    shape = (count, side, side, 3) if colour else (count, side, side)
    labels = np.concatenate([np.arange(20) % 10, rng.integers(0, 10, count - 20)])
    return Part(rng.integers(0, 256, shape, dtype=np.uint8), rng.permutation(labels))


def parts(side, colour):
    return {"train": part(23, side, colour, 1), "test": part(22, side, colour, 2)}


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(root, digits, packed=False):
    root.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        for name, array in (("images-idx3", digits[split].images), ("labels-idx1", digits[split].labels)):
            path = root / f"{stem}-{name}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))


def libsvm(digits):
    lines = []
    for image, label in zip(digits.images, digits.labels, strict=True):
        values = image.reshape(-1) / 127.5 - 1
        # a value of exactly 0 is left out, as the format allows
        pairs = " ".join(f"{place}:{value:.6f}" for place, value in enumerate(values, 1) if value)
        lines.append(f"{label + 1} {pairs} \n")
    return "".join(lines).encode()


def write_usps(root, digits, packed=True):
    for split, name in (("train", "usps"), ("test", "usps.t")):
        text = libsvm(digits[split])
        if packed:
            (root / f"{name}.bz2").write_bytes(bz2.compress(text))
        else:
            (root / name).write_bytes(text)


def write_mat(path, digits, labels=None):
    labels = digits.labels if labels is None else labels
    savemat(path, {"X": digits.images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)})


def write_svhn(root, digits):
    for split in digits:
        labels = digits[split].labels
        write_mat(root / f"{split}_32x32.mat", digits[split], np.where(labels == 0, 10, labels))


def write_syn(root, digits):
    for split in digits:
        write_mat(root / f"synth_{split}_32x32.mat", digits[split])


def write_listed(root, digits):
    for split in digits:
        folder = root / f"mnist_m_{split}"
        folder.mkdir()
        lines = []
        for number, (image, label) in enumerate(zip(digits[split].images, digits[split].labels, strict=True)):
            Image.fromarray(image).save(folder / f"{number:08d}.png")
            lines.append(f"{number:08d}.png {label}\n")
        (root / f"mnist_m_{split}_labels.txt").write_text("".join(lines))


def write_folders(root, digits):
    for split in digits:
        for number, (image, label) in enumerate(zip(digits[split].images, digits[split].labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:05d}.png")


def write_tensors(root, digits, first=False):
    for split, one in digits.items():
        images = one.images.transpose(0, 3, 1, 2) if first else one.images
        torch.save((torch.from_numpy(images.copy()), torch.from_numpy(one.labels)), root / f"mnist_m_{split}.pt")


def assert_holds(data, digits, tolerance=0):
    """Every image of training and test, in the order of the files, with its label."""
    for split, one in digits.items():
        source = data.opened()[split]
        assert source.data.dtype == torch.uint8
        images = one.images[..., None] if one.images.ndim == 3 else one.images
        found = source.data.numpy().astype(int)
        assert found.shape == images.transpose(0, 3, 1, 2).shape
        assert np.abs(found - images.transpose(0, 3, 1, 2)).max() <= tolerance
        assert [source.class_names[label] for label in source.labels] == [str(label) for label in one.labels]
        assert source.class_names == tuple("0123456789")


SETS = {
    "mnist": (MNIST, write_mnist, parts(7, False)),
    "usps": (USPS, write_usps, parts(16, False)),
    "svhn": (SVHN, write_svhn, parts(32, True)),
    "syn": (SYN, write_syn, parts(32, True)),
    "mnist-m listed": (MNISTM, write_listed, parts(9, True)),
    "mnist-m tensors": (MNISTM, write_tensors, parts(9, True)),
}


def made(tmp_path, name, **options):
    kind, write, digits = SETS[name]
    write(tmp_path, digits)
    return kind(str(tmp_path), **options), digits


@pytest.mark.parametrize("name", SETS)
def test_pixels_labels_and_order(tmp_path, name):
    data, digits = made(tmp_path, name)
    assert_holds(data, digits)
    assert list(data.opened()) == ["train", "test"]


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_where_and_how_it_lies(tmp_path, folder, packed):
    digits = parts(7, False)
    write_mnist(tmp_path / folder, digits, packed)
    assert_holds(MNIST(str(tmp_path)), digits)


def test_usps_unpacked(tmp_path):
    digits = parts(16, False)
    (tmp_path / "USPS").mkdir()
    write_usps(tmp_path / "USPS", digits, packed=False)
    assert_holds(USPS(str(tmp_path)), digits)


def test_usps_values_that_are_left_out_are_zero(tmp_path):
    line = b"1 1:-1 2:1 256:-0.5\n"
    rest = b"".join(b"%d 1:-1\n" % label for label in range(2, 11))
    (tmp_path / "usps").write_bytes(line + rest)
    (tmp_path / "usps.t").write_bytes(line)
    image = USPS(str(tmp_path)).parts()["test"].data[0, 0]
    assert image[0, :3].tolist() == [0, 255, 128]
    assert image[15, 15] == 64
    assert image[7].eq(128).all()


def rows(digits):
    values = digits.images.reshape(len(digits.labels), -1) / 127.5 - 1
    table = np.column_stack([digits.labels, values])
    return "\n".join(" ".join(f"{value:.4f}" for value in row) for row in table).encode() + b" \n"


@pytest.mark.parametrize("packed", [False, True])
def test_usps_as_rows(tmp_path, packed):
    digits = parts(16, False)
    for split, one in digits.items():
        (tmp_path / f"zip.{split}{'.gz' * packed}").write_bytes(gzip.compress(rows(one)) if packed else rows(one))
    assert_holds(USPS(str(tmp_path)), digits)
    (tmp_path / f"zip.train{'.gz' * packed}").write_bytes(gzip.compress(b"1 2 3\n") if packed else b"1 2 3\n")
    assert "cannot be read as lines of a label and 256 values" in refusal(USPS(str(tmp_path)))


def test_usps_as_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    digits = parts(16, False)
    with h5py.File(tmp_path / "usps.h5", "w") as file:
        for split, one in digits.items():
            file[f"{split}/data"] = (one.images.reshape(-1, 256) / 255).astype(np.float32)
            file[f"{split}/target"] = one.labels
    assert_holds(USPS(str(tmp_path)), digits)
    (tmp_path / "usps.h5").write_bytes(b"x")
    assert "cannot be read as HDF5 with train/data and train/target" in refusal(USPS(str(tmp_path)))


def test_usps_as_hdf5_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "usps.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "needs h5py: pip install h5py" in refusal(USPS(str(tmp_path)))


@pytest.mark.parametrize("low", [-1, 0])
def test_usps_as_one_matrix(tmp_path, low):
    digits = {"train": part(7291, 16, False, 1), "test": part(30, 16, False, 2)}
    both = np.concatenate([one.images.reshape(-1, 256) for one in digits.values()]) / 255
    labels = np.concatenate([one.labels for one in digits.values()]) + 1
    savemat(tmp_path / "USPS.mat", {"fea": low + (1 - low) * both, "gnd": labels[:, None]})
    assert_holds(USPS(str(tmp_path)), digits)


def test_usps_by_class_is_not_divided(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 30, 16, 16), dtype=np.uint8)  # of the digits 1 to 9, 0
    savemat(tmp_path / "usps_all.mat", {"data": images.swapaxes(2, 3).reshape(10, 30, 256).transpose(2, 1, 0)})
    found = USPS(str(tmp_path)).parts()
    assert list(found) == ["all"]
    assert found["all"].labels.tolist() == [digit for digit in (*range(1, 10), 0) for _ in range(30)]
    np.testing.assert_array_equal(found["all"].data.numpy(), images.reshape(300, 1, 16, 16))
    data = LabelledDataModule(USPS(str(tmp_path)))
    data.setup("fit")
    counts = [len(data.labels(split)) for split in ("train", "val")]
    assert 0 < counts[1] < counts[0] < 300
    for wrong, words in (
        ({"fea": images}, "holds fea: download"),
        ({"data": images}, "holds data of uint8 (10, 30, 16, 16)"),
        ({"data": np.zeros((256, 3, 10))}, "of float64 (256, 3, 10)"),
    ):
        savemat(tmp_path / "usps_all.mat", wrong)
        assert words in refusal(USPS(str(tmp_path)))
    write_usps(tmp_path, parts(16, False))
    assert set(USPS(str(tmp_path)).parts()) == {"train", "test"}  # a divided form goes first


def test_usps_as_a_pickle(tmp_path):
    (tmp_path / "usps_28x28.pkl").write_bytes(b"\x80\x04.")
    assert "is a pickle, which can run code when it is read: convert it to another" in refusal(USPS(str(tmp_path)))


def test_archives_that_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_files, "_MAX_FILE", 10**6)
    write_mnist(tmp_path, parts(7, False))
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(bytes(10**7)))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 1000, 1000))))
    for kind in (USPS, MNIST):
        assert "it holds more than 1000000 bytes" in refusal(kind(str(tmp_path)))


def test_svhn_extra_is_added_to_the_training(tmp_path):
    data, digits = made(tmp_path, "svhn", extra=True)
    more = part(21, 32, True, 3)
    write_mat(tmp_path / "extra_32x32.mat", more)
    first = digits["train"]
    both = Part(np.concatenate([first.images, more.images]), np.concatenate([first.labels, more.labels]))
    assert_holds(data, {"train": both, "test": digits["test"]})
    assert data.protocol()["extra"] is True
    assert len(SVHN(str(tmp_path)).opened()["train"]) == 23


def test_mnist_m_in_folders_of_labels(tmp_path):
    digits = parts(9, True)
    write_folders(tmp_path / "mnist_m", digits)
    # in the order of the names, not of the labels
    assert_holds(MNISTM(str(tmp_path)), digits)


def test_the_order_of_images_of_one_name_tells_no_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    found = []
    for root, labels in ((tmp_path / "one", range(10)), (tmp_path / "other", [3, 1, 4, 5, 9, 2, 6, 8, 7, 0])):
        for label, image in zip(labels, images, strict=True):
            for split in ("train", "test"):
                (root / split / str(label)).mkdir(parents=True)
                Image.fromarray(image).save(root / split / str(label) / "1.png")
        found.append(MNISTM(str(root)).parts()["train"])
    assert torch.equal(found[0].data, found[1].data)
    assert not np.array_equal(found[0].labels, found[1].labels)


def test_mnist_m_with_the_labels_in_the_folder(tmp_path):
    data, digits = made(tmp_path, "mnist-m listed")
    for split in digits:
        shutil.move(tmp_path / f"mnist_m_{split}_labels.txt", tmp_path / f"mnist_m_{split}")
    assert_holds(data, digits)


def test_mnist_m_tensors_with_channels_first(tmp_path):
    digits = parts(9, True)
    write_tensors(tmp_path, digits, first=True)
    assert_holds(MNISTM(str(tmp_path)), digits)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_channels(tmp_path, name, channels):
    data, digits = made(tmp_path, name, image_size=12, channels=channels)
    assert data.opened()["train"].sample_shape == (channels, 12, 12)
    image = Image.fromarray(digits["test"].images[5]).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR)).reshape(12, 12, channels)
    assert np.array_equal(data.opened()["test"].data[5].permute(1, 2, 0).numpy(), expected)
    assert {key: data.protocol()[key] for key in ("image_size", "channels")} == {"image_size": 12, "channels": channels}


# ---- refusals


def refusal(data):
    with pytest.raises(UserError) as caught:
        data.parts()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MNIST, ("train-images-idx3-ubyte or train-images-idx3-ubyte.gz", "'raw' or 'MNIST/raw'", "LeCun")),
        (USPS, ("usps.bz2, zip.train.gz, usps.h5, USPS.mat or usps_all.mat:", "'USPS'", "LIBSVM")),
        (SVHN, ("train_32x32.mat", "'SVHN'", "Stanford")),
        (SYN, ("synth_train_32x32.mat", "'SYN'", "SynthDigits")),
        (MNISTM, ("train/<label>/<image>", "mnist_m_train_labels.txt", "mnist_m_train.pt", "Ganin")),
    ],
)
def test_missing_files(tmp_path, kind, words):
    message = refusal(kind(str(tmp_path)))
    for word in (str(tmp_path), "put it there", *words):
        assert word in message
    assert "does not exist" in refusal(kind(str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte", b"", "starts with 00000803, but starts with nothing"),
        ("train-images-idx3-ubyte", b"<html>not found", "3 axes, which starts with 00000803, but starts with 3c68746d"),
        ("train-labels-idx1-ubyte", idx(np.zeros((2, 2))), "1 axis, which starts with 00000801, but starts"),
        ("train-images-idx3-ubyte", idx(np.zeros((23, 7, 7)))[:-1], "should have 1143 bytes, but has 1142"),
        ("train-images-idx3-ubyte", idx(np.zeros((23, 7, 7)))[:9], "should have"),
        ("train-images-idx3-ubyte", idx(np.zeros((5, 7, 7))), "has 5 images, but"),
        ("train-labels-idx1-ubyte", idx(np.full(23, 11)), "must hold digits, 0 to 9, or 10 for 0, but holds 11"),
        ("train-labels-idx1-ubyte", idx(np.arange(23) % 9), "has no image of the digit 9"),
    ],
)  # fmt: skip
def test_damaged_idx(tmp_path, name, content, words):
    data, _ = made(tmp_path, "mnist")
    (tmp_path / name).write_bytes(content)
    message = refusal(data)
    assert name.replace("labels-idx1", "images-idx3") in message or name in message
    assert words in message


def test_damaged_gzip(tmp_path):
    write_mnist(tmp_path, parts(7, False), packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:-20], b"plain"):
        path.write_bytes(content)
        message = refusal(MNIST(str(tmp_path)))
        assert f"'{path}' cannot be read as an idx file (" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "usps.bz2' is empty: download it again"),
        (b"a b c\n", "cannot be read as LIBSVM lines 'label 1:value ... 256:value'"),
        (b"1 257:0.5\n", "cannot be read as LIBSVM lines"),
        (b"1 1:0.5 2:1\n", "must hold values from -1 (paper) to 1 (ink), but holds 0 to 1"),
        (b"1 1:-1 2:2\n", "but holds -1 to 2"),
        (b"1 1:-1 2:nan\n", "must hold values from -1"),
        (b"0 1:-1 2:1\n", "must hold labels 1 (digit 0) to 10 (digit 9), but holds 0 to 0"),
    ],
)
def test_other_libsvm(tmp_path, text, words):
    data, _ = made(tmp_path, "usps")
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(text))
    message = refusal(data)
    assert "usps.bz2'" in message
    assert words in message


def test_damaged_bzip2(tmp_path):
    data, _ = made(tmp_path, "usps")
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(path.read_bytes()[:-30])
    assert "usps.t.bz2' cannot be read as LIBSVM lines" in refusal(data)


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"X": IMAGES}, "has no array called y"),
        ({"z": IMAGES}, "has no array called X or y"),
        ({"X": IMAGES, "y": np.arange(3)}, "X has 4 images, but y 3 labels"),
        ({"X": IMAGES[:28], "y": np.arange(4)}, "must be uint8 images (H, H, 3, N), but is uint8 (28, 32, 3, 4)"),
        ({"X": IMAGES.astype(float), "y": np.arange(4)}, "but is float64 (32, 32, 3, 4)"),
        ({"X": {"a": 1}, "y": np.arange(4)}, "'X' is a struct, but must be"),
        ({"X": IMAGES, "y": "text"}, "y must hold one digit for each image"),
        ({"X": IMAGES, "y": np.array([[0, 1], [2, 3]])}, "y must hold one digit for each image"),
        ({"X": IMAGES, "y": np.array([0, 1, 2, 17])}, "but holds 17"),
        ({"X": IMAGES, "y": np.array([0, 1, 2, 0.5])}, "but holds 0.5"),
    ],
)
def test_other_mat(tmp_path, content, words):
    savemat(tmp_path / "train_32x32.mat", content)
    message = refusal(SVHN(str(tmp_path)))
    assert "train_32x32.mat'" in message
    assert words in message


def test_damaged_mat(tmp_path):
    data, _ = made(tmp_path, "syn")
    path = tmp_path / "synth_test_32x32.mat"
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n"
    cases = {path.read_bytes()[:500]: "has no array called y", b"": "cannot be read", b"text " * 99: "cannot be read"}
    for content, words in (cases | {hdf5: "of version 7.3, which is not supported"}).items():
        path.write_bytes(content)
        message = refusal(data)
        assert "synth_test_32x32.mat'" in message
        assert words in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("00000001.png", "line 2, must read 'name label' with a digit, but is '00000001.png'"),
        ("00000001.png 12", "must read 'name label'"),
        ("7", "must read 'name label'"),
        ("other.png 3", "names 'other.png', which is not in"),
        ("../secret.png 3", "names '../secret.png', which is not in"),
    ],
)
def test_other_lines_of_labels(tmp_path, line, words):
    data, _ = made(tmp_path, "mnist-m listed")
    (tmp_path / "secret.png").write_bytes((tmp_path / "mnist_m_train" / "00000000.png").read_bytes())
    (tmp_path / "mnist_m_train_labels.txt").write_text(f"00000000.png 1\n{line}\n")
    message = refusal(data)
    assert "mnist_m_train_labels.txt'" in message
    assert words in message


def test_damaged_and_unlike_images(tmp_path):
    digits = parts(9, True)
    write_folders(tmp_path, digits)
    data = MNISTM(str(tmp_path))
    path = sorted((tmp_path / "test" / "4").iterdir())[0]
    good = path.read_bytes()
    Image.new("RGB", (11, 10)).save(path)
    assert "is 11x10 pixels in 3 channels, but the first is 9x9 pixels in 3 channels: set image_size" in refusal(data)
    assert MNISTM(str(tmp_path), image_size=8).opened()["test"].sample_shape == (3, 8, 8)
    path.write_bytes(good[:60])
    assert f"'{path}' cannot be read as an image" in refusal(data)
    (tmp_path / "test" / "ten").mkdir()
    assert "must hold a folder of images for each digit, 0 to 9, but holds 'ten'" in refusal(data)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()
    assert "but holds none" in refusal(data)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "keras_mnistm.pkl").write_bytes(b"\x80\x04.")
    message = refusal(MNISTM(str(tmp_path)))
    assert "is a pickle, which can run code when it is read: convert it" in message
    assert "mnist_m_train.pt" in message


class Unsafe:
    """What a hostile file would hold."""

    ran = False

    def __reduce__(self):
        return (setattr, (Unsafe, "ran", True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Unsafe(), "with Python objects, which could run code"),
        (torch.zeros(3), "must hold a dictionary of tensors or the pair"),
        ({"images": torch.zeros(3)}, "has no array called x or y: it must hold images x and labels y"),
        ((torch.zeros(2, 9, 9, 3), torch.zeros(2, dtype=torch.long)), "must be uint8 images (N, H, H), (N, H, H, 3)"),
        ((torch.zeros(2, 9, 9, 3, dtype=torch.uint8), torch.tensor([0])), "x has 2 images, but y 1 labels"),
        ((torch.zeros(2, 9, 9, 3, dtype=torch.uint8), torch.tensor([0, -1])), "but holds -1"),
    ],
)
def test_other_tensors(tmp_path, content, words):
    torch.save(content, tmp_path / "mnist_m_train.pt")
    message = refusal(MNISTM(str(tmp_path)))
    assert "mnist_m_train.pt'" in message
    assert words in message
    assert not Unsafe.ran


@pytest.mark.parametrize("kind", [MNIST, USPS, SVHN, SYN, MNISTM])
def test_impossible_arguments(kind):
    with pytest.raises(UserError, match="image_size must be a number above 0, but is -1"):
        kind("nowhere", image_size=-1)
    with pytest.raises(UserError, match=r"channels must be 1 \(grey\) or 3 \(RGB\), but is 4"):
        kind("nowhere", channels=4)


@pytest.mark.parametrize(
    ("source", "target"), [("mnist", "usps"), pytest.param("usps", "mnist", marks=pytest.mark.slow)]
)
def test_the_shipped_configurations_go_in_both_directions(cli, tmp_path, source, target):
    write_mnist(tmp_path / "MNIST" / "raw", parts(28, False))
    write_usps(tmp_path, parts(16, False))
    roots = [f"--data.sources.{source}.root={tmp_path}", f"--data.targets.{target}.root={tmp_path}"]
    config = Path(__file__).resolve().parents[3] / "configs" / f"{source}_{target}" / "dann.yaml"
    alone = '--trainer.callbacks=[{"class_path": "AdaptationGain", "init_args": {"seeds": 0}}]'  # without twins
    run = cli("fit", config, *roots, "--trainer.max_epochs=1", alone, small=False)
    card = results(run)["protocol"]["data"]
    assert (list(card["sources"]), list(card["targets"])) == ([source], [target])
    assert card["targets"][target]["samples"]["test"] == 22
    tested = results(cli("test", run / "config.yaml", "--ckpt_path", best_checkpoint(run), *roots, small=False))
    assert tested["samples"] == 22
