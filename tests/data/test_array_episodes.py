"""Arrays as episodes: every form of file, the division of classes, and one sentence for what cannot be used."""

import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT, results
from metatransfer import ArrayEpisodes, UserError

SHAPE = {"num_ways": 2, "num_queries": 2, "train_episodes": 4, "val_episodes": 2, "test_episodes": 2}
CLASSES = 8
Y = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), 5))
X = (np.arange(40)[:, None, None, None] * np.ones((1, 1, 6, 6))).astype(np.uint8)
SPLIT = np.array(["train"] * 4 + ["val"] * 2 + ["test"] * 2)[Y]


def contents(data):
    """For each split the labels of its samples, which are known by their first value."""
    data.setup()
    found = {}
    for split, sampler in data.samplers.items():
        x = sampler.source.read(torch.arange(len(sampler.source)), torch.device("cpu")).flatten(1)[:, 0] * 255
        for value, label in zip(x.round().long().tolist(), sampler.source.labels, strict=True):
            assert str(Y[value]) == sampler.source.class_names[label]
        found[split] = sorted(x.round().long().tolist())
    return found


def save(path, **arrays):
    path = str(path)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind not in "US"}
    if path.endswith(".npz"):
        np.savez(path, **arrays)
    elif path.endswith(".safetensors"):
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.pth", "a.safetensors"])
def test_every_file_gives_the_same_splits(tmp_path, name):
    found = contents(ArrayEpisodes(save(tmp_path / name, x=X, y=Y), **SHAPE))
    assert found == contents(ArrayEpisodes.from_arrays(X, Y, **SHAPE))
    assert found == contents(ArrayEpisodes.from_arrays(torch.from_numpy(X), Y.tolist(), **SHAPE))
    assert sorted(chain(*found.values())) == list(range(40))


def test_a_pair_of_npy_files(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    data = ArrayEpisodes(str(tmp_path / "x.npy"), labels_path=str(tmp_path / "y.npy"), **SHAPE)
    assert contents(data) == contents(ArrayEpisodes.from_arrays(X, Y, **SHAPE))


def test_a_pair_in_a_torch_file(tmp_path):
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), tmp_path / "pair.pt")
    data = ArrayEpisodes(str(tmp_path / "pair.pt"), **SHAPE)
    assert contents(data) == contents(ArrayEpisodes.from_arrays(X, Y, **SHAPE))


@pytest.mark.parametrize(("x", "y"), [("data", "labels"), ("images", "targets"), ("X", "Y")])
def test_usual_names(tmp_path, x, y):
    data = ArrayEpisodes(save(tmp_path / "a.npz", **{x: X, y: Y}), **SHAPE)
    assert contents(data) == contents(ArrayEpisodes.from_arrays(X, Y, **SHAPE))


def test_names_of_ones_own(tmp_path):
    path = save(tmp_path / "a.npz", pixels=X, kind=Y, x=X[:1])
    assert contents(ArrayEpisodes(path, x="pixels", y="kind", **SHAPE))


@pytest.mark.parametrize("pattern", ["{0}_{1}", "{1}_{0}"])
@pytest.mark.parametrize("val", ["val", "valid"])
def test_splits_by_names(tmp_path, pattern, val):
    names = {"train": "train", "val": val, "test": "test"}
    arrays = {}
    for split, name in names.items():
        arrays[pattern.format("x", name)], arrays[pattern.format("y", name)] = X[split == SPLIT], Y[split == SPLIT]
    data = ArrayEpisodes(save(tmp_path / "a.npz", **arrays), **SHAPE)
    assert contents(data) == {split: np.flatnonzero(split == SPLIT).tolist() for split in names}
    assert data.protocol()["split"] == "by the names of the arrays"


def test_splits_by_an_array(tmp_path):
    data = ArrayEpisodes(save(tmp_path / "a.npz", x=X, y=Y, split=SPLIT), **SHAPE)
    assert contents(data) == {split: np.flatnonzero(split == SPLIT).tolist() for split in ("train", "val", "test")}
    assert data.samplers["test"].source.class_names == ("6", "7")


def test_the_random_division_is_its_seeds():
    found = [contents(ArrayEpisodes.from_arrays(X, Y, split_seed=seed, **SHAPE)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_texts_and_whole_floats_are_labels():
    words = np.array([f"kind {label}" for label in Y])
    data = ArrayEpisodes.from_arrays(X, words, **SHAPE)
    data.setup("test")
    assert all(name.startswith("kind ") for name in data.samplers["test"].source.class_names)
    assert contents(ArrayEpisodes.from_arrays(X, Y.astype(float), **SHAPE))
    assert contents(ArrayEpisodes.from_arrays(X, Y[:, None], **SHAPE))


@pytest.mark.parametrize(
    ("shape", "kind", "channels_last", "expected"),
    [
        ((6, 6, 3), np.uint8, None, (3, 6, 6)),
        ((6, 6, 1), np.float64, None, (1, 6, 6)),
        ((3, 6, 6), np.uint8, None, (3, 6, 6)),
        ((6, 6), np.uint8, None, (1, 6, 6)),
        ((6, 6), np.float32, None, (6, 6)),
        ((6, 6), np.uint8, False, (6, 6)),
        ((3, 6, 3), np.uint8, None, (3, 6, 3)),  # either: left as it is
        ((3, 6, 3), np.uint8, True, (3, 3, 6)),
        ((6, 6, 3), np.uint8, False, (6, 6, 3)),
        ((7,), np.int16, None, (7,)),
    ],
)
def test_channels(shape, kind, channels_last, expected):
    x = np.random.default_rng(0).integers(0, 100, (40, *shape)).astype(kind)
    data = ArrayEpisodes.from_arrays(x, Y, channels_last=channels_last, **SHAPE)
    assert data.open("train").source.sample_shape == expected
    episode = data.episode("train", 0)
    assert episode.support_x.dtype == torch.float32
    assert (episode.support_x.max() <= 1) == (kind is np.uint8)
    if expected != shape and len(shape) == 3:
        first = data.samplers["train"].source.data[0]
        assert any(np.array_equal(first.numpy(), one.transpose(2, 0, 1)) for one in x)


def test_groups():
    groups = np.array(["a", "b"])[Y % 2]
    data = ArrayEpisodes.from_arrays(X, Y, groups=groups, group_by=True, split=SPLIT, **SHAPE)
    drawn = data.open("train")(np.arange(50))
    names = np.array([int(name) % 2 for name in data.samplers["train"].source.class_names])
    assert (names[drawn.classes[:, 0]] == names[drawn.classes[:, 1]]).all()
    with pytest.raises(UserError, match="group_by needs the groups"):
        ArrayEpisodes.from_arrays(X, Y, group_by=True, **SHAPE).setup("fit")
    with pytest.raises(UserError, match="is in the groups 'a' and 'b'"):
        ArrayEpisodes.from_arrays(X, Y, groups=np.array(["a", "b"])[np.arange(40) % 2], group_by=True, **SHAPE).setup(
            "fit"
        )


def test_bad_samples_are_named_or_counted():
    x = X.astype(np.float32)
    x[[3, 17], 0, 2, 2] = np.nan, np.inf
    with pytest.raises(UserError, match=r"sample (3|17) of 'x' holds NaN or infinity: mend it, or set on_bad_sample"):
        ArrayEpisodes.from_arrays(x, Y, **SHAPE).setup()
    data = ArrayEpisodes.from_arrays(x, Y, on_bad_sample="skip", **SHAPE)
    data.setup()
    assert sum(data.skipped.values()) == 2
    assert sum(len(sampler.source) for sampler in data.samplers.values()) == 38


def test_image_files_are_made_to_look_like_the_samples():
    x = np.zeros((40, 20, 20, 3), np.uint8)
    sample = ArrayEpisodes.from_arrays(x, Y, **SHAPE).convert_image(Image.new("RGB", (50, 40), "red"))
    assert sample.shape == (3, 20, 20)
    assert sample[0].min() == 1
    with pytest.raises(UserError, match="are no square images"):
        ArrayEpisodes.from_arrays(X.astype(float), Y, **SHAPE).convert_image(Image.new("RGB", (50, 40)))


def test_through_the_command_a_method_learns(cli, tmp_path):
    """Blobs, at the ways of the configuration's own; the network follows the samples."""
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(40, 6)), 20, 0) + 0.2 * generator.normal(size=(800, 6))
    path = save(tmp_path / "blobs.npz", x=x, y=np.repeat(np.arange(40), 20))
    run = cli(
        "fit", ROOT / "configs" / "protonet.yaml", "--model.backbone", "MLP", "--data", "ArrayEpisodes",
        "--data.path", path, "--data.num_ways=5",
    )  # fmt: skip
    assert results(run)["metrics"]["accuracy"]["value"] > 0.8
    assert results(run)["protocol"]["data"]["split"].startswith("classes at random, seed 0")


def no_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


BAD = {
    "missing": (lambda p: str(p / "a.npz"), {}, "does not exist"),
    "folder": (lambda p: str(p), {}, "is a folder"),
    "suffix": (lambda p: no_file(p, "a.hdf5", b"x"), {}, "must end in .npz"),
    "table": (lambda p: no_file(p, "a.csv", b"x"), {}, "use TableEpisodes"),
    "empty": (lambda p: no_file(p, "a.npz", b""), {}, "it is empty"),
    "cut": (lambda p: no_file(p, "a.npz", b"PK\x03\x04rest"), {}, "cannot be read as arrays of numpy"),
    "torch": (lambda p: no_file(p, "a.pt", b"nothing"), {}, "cannot be read as tensors"),
    "pickle": (lambda p: no_file(p, "a.pt", pickle.dumps(print)), {}, "cannot be read as tensors"),
    "safetensors": (lambda p: no_file(p, "a.safetensors", b"nothing"), {}, "cannot be read as safetensors"),
    "no labels": (lambda p: save(p / "a.npz", x=X), {}, "without its partner: add samples or labels, or name them"),
    "names": (lambda p: save(p / "a.npz", pictures=X, y=Y), {"x": "picture"}, "Did you mean pictures?"),
    "both": (lambda p: save(p / "a.npz", x=X, data=X, y=Y), {}, "both 'x' and 'data': say which by x"),
    "lengths": (lambda p: save(p / "a.npz", x=X, y=Y[:-1]), {}, "one value for each of the 40 samples"),
    "scalars": (lambda p: save(p / "a.npz", x=Y, y=Y), {}, "must be samples (N, *shape)"),
    "complex": (lambda p: save(p / "a.npz", x=X * 1j, y=Y), {}, "must be real numbers"),
    "fractions": (lambda p: save(p / "a.npz", x=X, y=Y + 0.5), {}, "holds fractions or NaN"),
    "one-hot": (lambda p: save(p / "a.npz", x=X, y=np.eye(8)[Y]), {}, "must hold one label for each sample"),
    "no samples": (lambda p: save(p / "a.npz", x=X[:0], y=Y[:0]), {}, "is empty"),
    "few": (lambda p: save(p / "a.npz", x=X, y=Y), {"num_ways": 5}, "8 classes, but three splits need 5 + 5 + 5"),
    "one class": (lambda p: save(p / "a.npz", x=X, y=Y * 0), {}, "has 1 classes"),
    "shared": (lambda p: save(p / "a.npz", x=X, y=Y, split=SPLIT[::-1].copy()), {}, "splits must have different"),
    "word": (lambda p: save(p / "a.npz", x=X, y=Y, split=np.full(40, "tain")), {}, "holds 'tain', but must hold"),
    "partner": (lambda p: save(p / "a.npz", x_train=X, y_train=Y, x_val=X), {}, "'x_val' without its partner"),
    "channels": (lambda p: save(p / "a.npz", x=X[:, 0], y=Y), {"channels_last": True}, "channels_last is for images"),
    "fraction": (lambda p: "a.npz", {"val_fraction": 0.7, "test_fraction": 0.5}, "must be below 1"),
    "labels_path": (lambda p: save(p / "a.npz", x=X, y=Y), {"labels_path": "y.npy"}, "belongs to a .npy file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, name):
    make, options, words = BAD[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        ArrayEpisodes(make(tmp_path), **{**SHAPE, **options}).setup()
    assert words in str(caught.value)


def test_objects_are_refused_unread(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([print], dtype=object), y=Y)
    with pytest.raises(UserError, match="Python objects"):
        ArrayEpisodes(str(tmp_path / "a.npz"), **SHAPE).setup()
