"""Targets are divided and served without a look at their labels: the same bits whatever these say."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import Arrays, Digits, ImageFolder, ImageTable
from metatransfer.data.sampling.loader import Place
from metatransfer.errors import UserError
from serving_by_names import domains_of, labelled

CLASSES = ("cat", "cow", "dog")
LOOK = {"image_size": 6, "channels": 1}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def vectors(count=60):
    return np.random.default_rng(1).normal(size=(count, 5)).astype(np.float32)


def with_target(target, source=None, **options):
    if source is None:
        x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
        source = Arrays.from_arrays(x, np.array(CLASSES)[np.arange(30) % 3])
    return domains_of({"s": source}, {"t": target}, **{"batch_size": 8, **options})


def image_source():
    x = np.random.default_rng(0).integers(0, 256, (30, 1, 6, 6), dtype=np.uint8)
    return Arrays.from_arrays(x, np.array(CLASSES)[np.arange(30) % 3])


def everything_before_the_test(data):
    """All tensors that training and validation are served, over three epochs."""
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for epoch in range(3):
        loader.place = Place(position=lambda epoch=epoch: (epoch, 0))
        found += list(loader)
    assert len(found) > 3
    found += [batch for one in (*data.val_dataloader(), data.target_samples(), data.source_samples()) for batch in one]
    return [tensor for batch in found for tensor in batch]


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("options", [{}, {"transductive": True}, {"standardize": "domain"}, {"seed": 3}])
def test_no_label_of_an_array_leaks(tmp_path, options):
    generator = np.random.default_rng(7)
    y = np.array(CLASSES)[np.sort(generator.integers(0, 3, 60))]  # sorted, as files often are
    found, labels = [], []
    for case, given in enumerate((y, generator.permutation(y), np.roll(y, 17), None)):
        path = str(tmp_path / f"{case}.npz")
        np.savez(path, x=vectors(), **({"y": given} if given is not None else {}))
        data = with_target(Arrays(path), **options)
        found.append(everything_before_the_test(data))
        labels.append(data.oracle_labels("val"))
    assert all(same(found[0], other) for other in found[1:])
    assert not torch.equal(labels[0], labels[1])  # there was something to leak
    assert labels[3] is None


def test_labels_that_are_in_the_data_would_be_seen(tmp_path):
    """The comparison above can fail."""
    one, two = (everything_before_the_test(with_target(Arrays.from_arrays(x, None))) for x in (
        vectors(), vectors()[::-1]))  # fmt: skip
    assert not same(one, two)


def write(root, names, equal_names=False):
    """Images ``00.png``, ... of one grey each, the class of each in ``names``."""
    for number, name in enumerate(names):
        folder = root / name if name else root
        if equal_names and name:
            folder = folder / f"of {number}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 4 * number).save(folder / ("a.png" if equal_names else f"{number:02d}.png"))
    return root


@pytest.mark.parametrize("equal_names", [False, True])
@pytest.mark.parametrize("held", [{}, {"memory_limit": 1}])
def test_no_folder_of_a_class_leaks(tmp_path, equal_names, held):
    generator = np.random.default_rng(3)
    names = np.array(CLASSES)[np.sort(generator.integers(0, 3, 60))]
    found, labels = [], []
    for case, given in enumerate((names, generator.permutation(names))):
        root = write(tmp_path / str(case), given, equal_names)
        data = with_target(ImageFolder(str(root), **LOOK, **held), image_source())
        found.append(everything_before_the_test(data))
        labels.append(data.oracle_labels("train"))
    assert same(*found)
    assert not torch.equal(*labels)


def test_labels_belong_to_their_images(tmp_path):
    names = np.array(CLASSES)[np.random.default_rng(3).integers(0, 3, 60)]
    data = with_target(ImageFolder(str(write(tmp_path / "x", names)), **LOOK), image_source())
    for batch in data.test_dataloader()[0]:
        number = (batch.x[:, 0, 0, 0] * 255 / 4).round().long()
        assert [CLASSES[label] for label in batch.y.tolist()] == names[number].tolist()
    assert len(data.oracle_labels("test")) == 12


def test_an_undivided_target_is_not_stratified():
    """As often as not a class has another part of the test than of the whole."""
    y = np.array(CLASSES)[np.arange(60) % 3]
    counts = [
        with_target(labelled(Arrays.from_arrays(vectors(), y), seed=seed)).oracle_labels("test").bincount().tolist()
        for seed in range(20)
    ]
    assert len({tuple(one) for one in counts}) > 5
    assert {sum(one) for one in counts} == {12}


def pictures(data):
    """Number of each image, as its grey says."""
    return [round(float(value) * 255 / 4) for batch in data.target_samples() for value in batch.x[:, 0, 0, 0]]


def zipped(root):
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root.parent))
    return path


@pytest.mark.parametrize("layout", ["flat", "one folder", "zip"])
def test_images_without_classes(tmp_path, layout):
    root = tmp_path / "x"
    write(root / "all" if layout == "one folder" else root, [""] * 60)
    root = zipped(root) if layout == "zip" else root
    data = with_target(ImageFolder(str(root), **LOOK), image_source())
    everything_before_the_test(data)
    labelled = write(tmp_path / "labelled", np.array(CLASSES)[np.arange(60) % 3])
    other = with_target(ImageFolder(str(labelled), **LOOK), image_source())
    assert pictures(data) == pictures(other)
    assert len(pictures(data)) == 42
    with pytest.raises(UserError, match="target 't' has 12 test samples without labels"):
        data.setup("test")


def test_unlabelled_training_and_a_labelled_test(tmp_path):
    write(tmp_path / "train", [""] * 30)
    write(tmp_path / "test", [*CLASSES] * 4)
    data = with_target(ImageFolder(str(tmp_path), **LOOK), image_source())
    data.setup("fit")
    assert data.oracle_labels("train") is None
    assert data.oracle_labels("val") is None
    assert len(data._side("targets").labels("train")) == 27
    data.setup("test")
    assert torch.cat([batch.y for batch in data.test_dataloader()[0]]).tolist() == [0, 1, 2] * 4
    with pytest.raises(UserError, match="without labels, but an oracle"):
        data.oracle_twin()


def test_images_that_cannot_be_used(tmp_path):
    names = np.array(CLASSES)[np.arange(60) % 3]
    root = write(tmp_path / "x", names)
    (root / "cat" / "00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"target 't': .*00\.png.*on_bad_sample=skip to leave out and count"):
        with_target(ImageFolder(str(root), **LOOK), image_source()).setup("fit")
    data = with_target(ImageFolder(str(root), **LOOK, on_bad_sample="skip"), image_source())
    data.setup("test")
    assert {name: count for name, count in data.info().skipped.items() if count} == {"t all": 1}
    for batch in data.test_dataloader()[0]:
        number = (batch.x[:, 0, 0, 0] * 255 / 4).round().long()
        assert [CLASSES[label] for label in batch.y.tolist()] == names[number].tolist()


def table(folder, names, name):
    write(folder / "images", [""] * 60)
    lines = ["filename,label" if names is not None else "filename"]
    lines += [f"images/{i:02d}.png" + (f",{names[i]}" if names is not None else "") for i in range(60)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return ImageTable(str(folder / name), **LOOK)


def test_tables(tmp_path):
    names = np.array(CLASSES)[np.sort(np.random.default_rng(3).integers(0, 3, 60))]
    found = [
        everything_before_the_test(with_target(table(tmp_path, given, f"{case}.csv"), image_source()))
        for case, given in enumerate((names, np.random.default_rng(4).permutation(names), None))
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    data = with_target(table(tmp_path, names, "a.csv"), image_source())
    for batch in data.test_dataloader()[0]:
        number = (batch.x[:, 0, 0, 0] * 255 / 4).round().long()
        assert [CLASSES[label] for label in batch.y.tolist()] == names[number].tolist()
    wrong = ImageTable(str(tmp_path / "2.csv"), label="lable", **LOOK)
    with pytest.raises(UserError, match=r"target 't': '.*2\.csv' has no column 'lable'"):
        with_target(wrong, image_source()).setup("fit")


def test_arrays_without_labels(tmp_path):
    np.save(tmp_path / "x.npy", vectors())
    torch.save({"features": torch.from_numpy(vectors())}, tmp_path / "x.pt")
    np.savez(
        tmp_path / "x.npz", x_train=vectors()[:40], x_test=vectors()[40:], y_test=np.array(CLASSES)[np.arange(20) % 3]
    )
    alone, other = (with_target(Arrays(str(tmp_path / name))) for name in ("x.npy", "x.pt"))
    assert same(everything_before_the_test(alone), everything_before_the_test(other))
    parts = with_target(Arrays(str(tmp_path / "x.npz")))
    parts.setup("test")
    assert torch.cat([batch.y for batch in parts.test_dataloader()[0]]).tolist() == [0, 1, 2] * 6 + [0, 1]
    assert parts.oracle_labels("val") is None
    assert len(parts._side("targets").labels("train")) == 36
    np.savez(tmp_path / "y.npz", y=np.arange(20))
    with pytest.raises(UserError, match=r"target 't': .*y\.npz' has 'y' without its samples"):
        with_target(Arrays(str(tmp_path / "y.npz"))).setup("fit")


def test_any_labelled_data_can_be_a_target():
    data = domains_of({"a": Digits(8)}, {"b": labelled(Digits(8), seed=1)}, batch_size=32)
    data.setup("fit")
    data.setup("test")
    assert data.info().num_classes == 10
    assert (torch.cat([batch.y for batch in data.val_dataloader()[1]]) == -1).all()
    batch = next(iter(data.test_dataloader()[0]))
    assert torch.equal(batch.y, data.oracle_labels("test")[batch.number])


def test_moving_a_tree_changes_nothing(tmp_path):
    names = np.array(CLASSES)[np.arange(60) % 3]
    root = write(tmp_path / "x", names)
    shutil.copytree(root, tmp_path / "y")
    one, two = (with_target(ImageFolder(str(tmp_path / name), **LOOK), image_source()) for name in "xy")
    assert same(everything_before_the_test(one), everything_before_the_test(two))
