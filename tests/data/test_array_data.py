"""Labelled arrays: where they come from, what is kept of them, and what is refused."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from metatransfer.data.array_data import ArrayDataModule
from metatransfer.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = np.arange(40) % 4
IMAGES = RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8)


def arrays(x=X, y=Y, **options):
    return ArrayDataModule.from_arrays(x, y, **{"batch_size": 8, **options})


def counts(data):
    return {name: split.counts.tolist() for name, split in data.splits.items()}


def test_vectors_are_divided():
    data = arrays()
    data.setup()
    assert counts(data) == {"train": [7] * 4, "val": [1] * 4, "test": [2] * 4}
    assert data.class_names == ("0", "1", "2", "3")
    assert data.sample_shape() == (5,)
    for batch in data.train_dataloader():
        rows = data.split("train").indices[batch.number]
        assert np.array_equal(batch.x.numpy(), X[rows])
        assert batch.y.tolist() == Y[rows].tolist()
    again = arrays()
    assert all(again.split(name).indices.tolist() == split.indices.tolist() for name, split in data.splits.items())
    assert arrays(labels_per_class=2).class_counts.tolist() == [2] * 4
    few = arrays(y=Y // 3, balance="oversample", batch_size=28)
    assert few.class_counts.tolist() == [21, 7]
    assert next(iter(few.train_dataloader())).y.bincount().tolist() == [14, 14]


def test_bytes_stay_bytes():
    for x in (IMAGES, IMAGES[..., None].repeat(3, -1), torch.from_numpy(IMAGES), IMAGES[:, None]):
        data = arrays(x)
        assert data.split("train").source.data.dtype == torch.uint8
        assert data.sample_shape() == (3 if x.ndim == 4 and x.shape[-1] == 3 else 1, 6, 6)
        batch = next(iter(data.val_dataloader()))
        assert batch.x.dtype == torch.float32
        expected = IMAGES[data.split("val").indices].astype(np.float32) / 255
        np.testing.assert_allclose(batch.x[:, 0].numpy(), expected, rtol=1e-6)
    assert arrays(IMAGES[..., None].repeat(3, -1), channels_last=False).sample_shape() == (6, 6, 3)
    assert arrays(IMAGES[..., None].repeat(4, -1), channels_last=True).sample_shape() == (4, 6, 6)
    assert arrays(IMAGES, channels_last=False).sample_shape() == (6, 6)


class Column:
    """What pandas has of an array."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return np.array(self.values, dtype=object)


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (Y + 7, ("7", "8", "9", "10")),
        (Y.astype(np.float64) - 1, ("-1", "0", "1", "2")),
        (Y[:, None], ("0", "1", "2", "3")),
        (torch.from_numpy(Y), ("0", "1", "2", "3")),
        (["cat", "dog"] * 20, ("cat", "dog")),
        (["cat", 1] * 20, ("1", "cat")),
        (np.array(["b", "ä"] * 20, dtype=object), ("b", "ä")),
        (np.array([b"b", "ä".encode()] * 20), ("b", "ä")),
        (Y > 1, ("False", "True")),
        (Column(["no", "yes"] * 20), ("no", "yes")),
        (Column([3, 12] * 20), ("3", "12")),
    ],
)
def test_labels_of_any_kind(y, names):
    data = arrays(y=y)
    assert data.class_names == names
    batch = next(iter(data.test_dataloader()))
    given = np.asarray(y.to_numpy() if isinstance(y, Column) else y).flatten()
    same = given[:, None] == given
    rows = data.split("test").indices
    assert torch.equal(batch.y[:, None] == batch.y, torch.from_numpy(same[rows[:8]][:, rows[:8]]))


def test_splits_at_hand():
    val, test = (X[:6] + 1, np.array([1, 1, 0, 0, 2, 2])), (X[:4] + 2, [3, 2, 1, 0])
    data = arrays(val=val, test=test)
    assert counts(data) == {"train": [10] * 4, "val": [2, 2, 2, 0], "test": [1] * 4}
    assert data.protocol()["split"] == "as given"
    batch = next(iter(data.test_dataloader()))
    assert batch.y.tolist() == [3, 2, 1, 0]
    assert np.array_equal(batch.x.numpy(), X[:4] + 2)
    assert counts(arrays(test=test)) == {"train": [9] * 4, "val": [1] * 4, "test": [1] * 4}
    with pytest.raises(UserError, match="no test split"):
        arrays(val=val).setup("test")


def test_what_is_given_is_left_alone():
    x = X.copy()
    x.flags.writeable = False
    data = arrays(x)
    next(iter(data.train_dataloader())).x.zero_()
    assert np.array_equal(x, X)


def save(folder, kind):
    if kind == ".npy":
        np.save(folder / "x.npy", IMAGES)
        np.save(folder / "y.npy", Y)
        return {"path": str(folder / "x.npy"), "labels_path": str(folder / "y.npy")}
    path = folder / f"file{kind}"
    if kind == ".npz":
        np.savez(path, x=IMAGES, y=Y)
    else:
        torch.save({"images": torch.from_numpy(IMAGES), "labels": torch.from_numpy(Y)}, path)
    return {"path": str(path)}


@pytest.mark.parametrize("kind", [".npz", ".npy", ".pt"])
def test_files(tmp_path, kind):
    data = ArrayDataModule(**save(tmp_path, kind), eval_batch_size=99)
    assert counts(data) == {"train": [7] * 4, "val": [1] * 4, "test": [2] * 4}
    for one, two in zip(data.test_dataloader(), arrays(IMAGES, eval_batch_size=99).test_dataloader(), strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)


def test_splits_in_a_file(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=X, y_train=Y, test_x=X[:4], test_y=Y[:4])
    assert counts(ArrayDataModule(path)) == {"train": [9] * 4, "val": [1] * 4, "test": [1] * 4}
    words = np.array(["train"] * 24 + ["valid"] * 8 + ["Test"] * 8)
    np.savez(path, features=X, y=Y, split=words)
    data = ArrayDataModule(path, x="features")
    assert counts(data) == {"train": [6] * 4, "val": [2] * 4, "test": [2] * 4}
    assert np.array_equal(data.split("test").read(np.array([1]), torch.device("cpu"))[0].numpy(), X[33])


def test_predict(tmp_path):
    np.save(tmp_path / "new.npy", IMAGES[:5])
    np.savez(tmp_path / "new.npz", other=IMAGES[:5])
    for new in (IMAGES[:5], str(tmp_path / "new.npy"), str(tmp_path / "new.npz")):
        data = arrays(IMAGES, predict=new, eval_batch_size=3)
        data.setup("predict")
        batches = list(data.predict_dataloader())
        assert [batch.files for batch in batches] == [("0", "1", "2"), ("3", "4")]
        shown = torch.cat([batch.x for batch in batches])
        torch.testing.assert_close(shown, torch.from_numpy(IMAGES[:5, None] / np.float32(255)))


def test_show():
    shown = arrays(IMAGES).show("train", 0)
    assert isinstance(shown, Tensor)
    assert shown.shape == (1, 6, 6)
    stretched = arrays(IMAGES[:, None].repeat(3, 1).astype(np.float64) - 100, channels_last=False).show("test", 1)
    assert stretched.shape == (3, 6, 6)
    assert 0 <= stretched.min() < stretched.max() <= 1
    assert arrays(X.repeat(2, 1)).show("val", 0).endswith(", ...")


def test_the_command_line_knows_the_arguments_of_the_base():
    parser = ArgumentParser()
    parser.add_class_arguments(ArrayDataModule, "data")
    options = parser.parse_args(["--data.path=x.npz", "--data.labels_per_class=5"]).data
    assert (options.split, options.labels_per_class, options.batch_size) == ("split", 5, 32)


def replaced(array, place, value):
    array = np.array(array, dtype=np.result_type(array, type(value)) if not isinstance(value, str) else object)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: arrays(replaced(X, (7, 2), np.nan)), "arrays: 'x': sample 7 holds NaN or infinity"),
        (lambda: arrays(replaced(X, (slice(3, 5), 0), np.inf)), r"sample 3 holds NaN .*\(2 such samples\)"),
        (lambda: arrays(X.astype(np.float64) * 1e300), "sample 0 holds NaN or infinity, or what float32 cannot hold"),
        (lambda: arrays(val=(replaced(X, (1, 1), np.nan), Y)), "'x_val': sample 1 holds NaN"),
        (lambda: arrays(X[:, 0]), r"must be samples \(N, \*shape\), but has shape \(40,\): give it a second axis"),
        (lambda: arrays(X[:0], Y[:0]), r"'x' of shape \(0, 5\) is empty"),
        (lambda: arrays(X.astype(str)), "'x' holds <U32, but samples must be real numbers"),
        (lambda: arrays(X.astype(complex)), "'x' holds complex128, but samples must be real numbers"),
        (lambda: arrays(X.astype(object)), "'x' holds Python objects"),
        (lambda: arrays([[1.0], [2.0, 3.0]], [0, 1]), "'x' holds rows of different lengths"),
        (lambda: arrays(3), "'x' must be an array, but is of type int"),
        (lambda: arrays(X, channels_last=True), r"channels_last is for images .* is \(40, 5\): leave it out"),
        (lambda: arrays(y=Y[:39]), "'x' has 40 samples, but 'y' 39 labels: give one for each"),
        (lambda: arrays(y=np.eye(4)[Y]), r"of shape \(40, 4\) it is one-hot: give the places of the ones"),
        (lambda: arrays(y=X), r"must hold one label for each sample, \(N,\), but of shape \(40, 5\)"),
        (lambda: arrays(y=Y + 0.5), "'y' holds 0.5 for sample 0, but labels are whole numbers or texts"),
        (lambda: arrays(y=replaced(Y, 6, np.nan)), "'y' holds nan for sample 6"),
        (lambda: arrays(y=replaced(Y.astype(str), 6, "")), "'y' has no label for sample 6"),
        (lambda: arrays(y=np.array(["a", None] * 20, dtype=object)), "'y' has no label for sample 1"),
        (lambda: arrays(y=["a", "b", float("nan")] * 10), "'y' has no label for sample 2"),
        (lambda: arrays(y=np.array([1, {}] * 20, dtype=object)), "'y' holds Python objects"),
        (lambda: arrays(y=Y.astype(complex)), "'y' holds complex128"),
        (lambda: arrays(y=[b"\xff", b"a"] * 20), "bytes that are no UTF-8"),
        (lambda: arrays(y=Y * 0), r"arrays has one class only \('0'\)"),
        (lambda: arrays(y=(np.arange(40) < 2) + 0), "class '1' has 2 samples, but needs one for each of train, val"),
        (lambda: arrays(val=(X, Y + 1)), "arrays val has a class that the training has no sample of .'4'"),
        (lambda: arrays(val=(X[:, :4], Y)), r"samples of val have the shape \(4,\), but those of train \(5,\)"),
        (lambda: arrays(IMAGES, val=(IMAGES / 255, Y)), "val .*shape"),
        (lambda: arrays(IMAGES[:, None], val=(IMAGES[:, None] / 255, Y)), "val are not uint8, but those of train are"),
        (lambda: arrays(val=X), r"val must be a pair \(samples, labels\), but is a ndarray"),
        (lambda: arrays(path="x.npz"), "from_arrays takes no path"),
        (lambda: arrays(labels_per_class=8), "labels_per_class=8 is more than class '0' has for training, 7"),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build().setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ({"a": X}, {}, "a.npz' has no samples and labels called x or X .* only a: name them by x and y"),
        ({"x": X}, {}, "a.npz' has 'x' without its partner"),
        ({"x": X, "X": X, "y": Y}, {}, "has both 'x' and 'X': say which by x"),
        ({"x": X, "y": Y}, {"x": "xs"}, r"has no array 'xs' \(x\), only x, y"),
        ({"x": X, "y": Y, "x_test": X}, {}, "has 'x_test' without its partner"),
        ({"x_test": X, "y_test": Y}, {}, "has no samples and labels called x"),
        ({"x": X, "y": Y, "split": Y}, {}, "'split' holds '0', but must hold train, val and test"),
        ({"x": X, "y": Y, "split": ["val"] * 40}, {}, "'split' says train of no sample"),
        ({"x": X, "y": Y, "split": ["train"]}, {}, "'split' has 1 words for 40 samples"),
        ({"x": X, "y": Y}, {"labels_path": "y.npy"}, "labels_path belongs to a .npy file"),
        ({"x": X, "y": Y}, {"path": "b.npz"}, "array file '.*b.npz' does not exist. Did you mean a.npz"),
        ({"x": X, "y": Y}, {"path": "table.csv"}, "table.csv' must end in .npz"),
    ],
)
def test_one_sentence_of_files(tmp_path, content, options, words):
    np.savez(tmp_path / "a.npz", **content)
    (tmp_path / "table.csv").write_text("a,b")
    path = tmp_path / options.pop("path", "a.npz")
    with pytest.raises(UserError, match=words) as caught:
        ArrayDataModule(str(path), **options).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (None, "nothing is given to label: set predict to samples"),
        (X[:, :4], r"predict: the samples have the shape \(4,\), but those of the training \(5,\)"),
        (replaced(X, (2, 2), np.nan), "predict: sample 2 holds NaN"),
        (X[0], "predict must be samples"),
        ("missing.npz", "array file 'missing.npz' does not exist"),
        ({"a": X, "b": X}, "must hold samples called x or X or data or images, but holds a, b: say which by x"),
    ],
)
def test_one_sentence_of_prediction(tmp_path, predict, words):
    if isinstance(predict, dict):
        np.savez(tmp_path / "new.npz", **predict)
        predict = str(tmp_path / "new.npz")
    with pytest.raises(UserError, match=words) as caught:
        arrays(predict=predict).setup("predict")
    assert "\n" not in str(caught.value)
