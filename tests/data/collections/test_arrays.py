"""Labelled arrays: where they come from, what is kept of them, and the sentence of every mistake."""

import pickle
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from numpy.lib.format import write_array_header_1_0
from PIL import Image
from safetensors.torch import save_file
from scipy.sparse import coo_array, csc_array, csr_matrix, save_npz
from sklearn.datasets import dump_svmlight_file

from metatransfer.data.collections import Arrays, open_path
from metatransfer.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = np.arange(40) % 4
IMAGES = RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8)
CPU = torch.device("cpu")


def arrays(x=X, y=Y, **options):
    return Arrays.from_arrays(x, y, **options)


def whole(data):
    return data.opened()["all"]


def values(source):
    return source.read(torch.arange(len(source)), CPU).numpy()


def test_vectors_come_undivided():
    source = whole(arrays())
    assert list(arrays().opened()) == ["all"]
    assert source.class_names == ("0", "1", "2", "3")
    assert np.array_equal(values(source), X)
    assert source.labels.tolist() == Y.tolist()


def test_twenty_samples_are_enough():
    assert whole(arrays(X[:20], Y[:20])).sizes.tolist() == [5] * 4


def test_bytes_stay_bytes():
    for x in (IMAGES, IMAGES[..., None].repeat(3, -1), torch.from_numpy(IMAGES), IMAGES[:, None]):
        source = whole(arrays(x))
        assert source.data.dtype == torch.uint8
        assert source.sample_shape == (3 if x.ndim == 4 and x.shape[-1] == 3 else 1, 6, 6)
        np.testing.assert_allclose(values(source)[:, 0], IMAGES.astype(np.float32) / 255, rtol=1e-6)


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
        ((6, 6, 4), np.uint8, True, (4, 6, 6)),
        ((7,), np.int16, None, (7,)),
    ],
)
def test_channels(shape, kind, channels_last, expected):
    x = np.random.default_rng(0).integers(0, 100, (40, *shape)).astype(kind)
    source = whole(arrays(x, channels_last=channels_last))
    assert source.sample_shape == expected
    assert (values(source).max() <= 1) == (kind is np.uint8)
    turned = x if expected == shape or len(shape) < 3 else x.transpose(0, 3, 1, 2)
    assert np.array_equal(source.data.numpy().reshape(turned.shape), turned)


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
    source = whole(arrays(y=y))
    assert source.class_names == names
    given = np.asarray(y.to_numpy() if isinstance(y, Column) else y).flatten()
    assert np.array_equal(source.labels[:, None] == source.labels, given[:, None] == given)


def test_splits_at_hand():
    val, test = (X[:6] + 1, np.array([1, 1, 0, 0, 2, 2])), (X[:4] + 2, [3, 2, 1, 0])
    parts = arrays(val=val, test=test).opened()
    assert {name: source.sizes.tolist() for name, source in parts.items()} == {
        "train": [10] * 4, "val": [2] * 3, "test": [1] * 4,
    }  # fmt: skip
    assert parts["test"].labels.tolist() == [3, 2, 1, 0]
    assert np.array_equal(values(parts["test"]), X[:4] + 2)
    words = np.array(["train"] * 24 + ["valid"] * 8 + ["Test"] * 8)
    parts = arrays(split=words).opened()
    assert np.array_equal(values(parts["val"]), X[24:32])


def test_what_is_given_is_left_alone():
    x = X.copy()
    x.flags.writeable = False
    whole(arrays(x)).read(torch.arange(3), CPU).zero_()
    assert np.array_equal(x, X)


def save(path, **content):
    path, tensors = str(path), {k: torch.from_numpy(v) for k, v in content.items() if v.dtype.kind not in "US"}
    if path.endswith(".npz"):
        np.savez(path, **content)
    elif path.endswith(".safetensors"):
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.pth", "a.safetensors", "x.npy", "pair.pt"])
def test_every_file_gives_the_same(tmp_path, name):
    options = {"path": str(tmp_path / name)}
    if name == "x.npy":
        np.save(tmp_path / "x.npy", IMAGES)
        np.save(tmp_path / "y.npy", Y)
        options["labels_path"] = str(tmp_path / "y.npy")
    elif name == "pair.pt":
        torch.save((torch.from_numpy(IMAGES), torch.from_numpy(Y)), tmp_path / name)
    else:
        save(tmp_path / name, x=IMAGES, y=Y)
    source, same = whole(Arrays(**options)), whole(arrays(IMAGES))
    assert source.fingerprint() == same.fingerprint()


@pytest.mark.parametrize(("x", "y"), [("data", "labels"), ("images", "targets"), ("X", "Y"), ("features", "y")])
def test_usual_names(tmp_path, x, y):
    assert len(whole(Arrays(save(tmp_path / "a.npz", **{x: IMAGES, y: Y})))) == 40
    path = save(tmp_path / "b.npz", pixels=IMAGES, kind=Y, x=IMAGES[:1])
    assert len(whole(Arrays(path, x="pixels", y="kind"))) == 40


@pytest.mark.parametrize("pattern", ["{0}_{1}", "{1}_{0}"])
@pytest.mark.parametrize("val", ["val", "valid"])
def test_splits_by_names(tmp_path, pattern, val):
    content = {}
    for place, name in enumerate(("train", val, "test")):
        content[pattern.format("x", name)], content[pattern.format("y", name)] = X[place == Y], Y[place == Y]
    parts = Arrays(save(tmp_path / "a.npz", **content)).opened()
    assert {name: source.class_names for name, source in parts.items()} == {
        "train": ("0",), "val": ("1",), "test": ("2",),
    }  # fmt: skip
    path = save(tmp_path / "b.npz", x=X, y=Y, x_test=X[:4], y_test=Y[:4])
    assert {name: len(source) for name, source in Arrays(path).opened().items()} == {"train": 40, "test": 4}


def test_groups():
    source = whole(arrays(groups=np.array(["a", "b"])[Y % 2]))
    assert source.groups == ("a", "b", "a", "b")
    with pytest.raises(UserError, match="is in the groups 'a' and 'b'"):
        whole(arrays(groups=np.array(["a", "b"])[np.arange(40) // 20]))


def test_bad_samples_are_named_or_counted():
    x = X.copy()
    x[[3, 17], 2] = np.nan, np.inf
    with pytest.raises(UserError, match=r"sample 3 holds NaN, infinity.*on_bad_sample=skip.*, 2 here"):
        whole(arrays(x))
    data = arrays(x, on_bad_sample="skip")
    assert len(whole(data)) == 38
    assert data.skipped == {"all": 2}
    with pytest.raises(UserError, match="all samples hold NaN"):
        whole(arrays(X * np.nan, on_bad_sample="skip"))


def test_target_domains_need_no_labels(tmp_path):
    part = arrays(y=None).unlabelled_parts()["all"]
    assert part.withheld is None
    assert np.array_equal(values(part.source), X)
    assert arrays().unlabelled_parts()["all"].withheld.tolist() == [str(label) for label in Y]
    np.save(tmp_path / "x.npy", X)
    assert Arrays(str(tmp_path / "x.npy")).unlabelled_parts()["all"].withheld is None


def test_samples_to_label(tmp_path):
    np.save(tmp_path / "new.npy", IMAGES[:5])
    np.savez(tmp_path / "new.npz", other=IMAGES[:5])
    for new in ("new.npy", "new.npz"):
        source, names = arrays(IMAGES).unlabelled(str(tmp_path / new))
        assert names == ("0", "1", "2", "3", "4")
        np.testing.assert_allclose(values(source)[:, 0], IMAGES[:5] / np.float32(255), rtol=1e-6)
    np.savez(tmp_path / "two.npz", a=X, b=X)
    for new, words in (("two.npz", "called x or X .*, but holds a, b: set x to"), ("gone.npz", "does not exist")):
        with pytest.raises(UserError, match=words):
            arrays(IMAGES).unlabelled(str(tmp_path / new))
    with pytest.raises(UserError, match=r"samples have the shape \(1, 6, 6\), but those of the training \(5,\)"):
        arrays().unlabelled(str(tmp_path / "new.npy"))


def test_objects_of_numbers():
    assert np.array_equal(values(whole(arrays(X.astype(object)))), X)
    assert whole(arrays(y=Y.astype(float).astype(object))).class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("convert", [csr_matrix, coo_array, lambda x: torch.from_numpy(x).to_sparse()])
def test_sparse_matrices(convert):
    x = X * (X > 0)
    assert np.array_equal(values(whole(arrays(convert(x)))), x)


@pytest.mark.parametrize("form", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_sparse_matrix_of_torch_stays_sparse(tmp_path, form, dtype):
    x = torch.from_numpy(np.where(X > 0, X, 0)).to(dtype)
    given = getattr(x, form)()
    torch.save({"x": given, "y": torch.from_numpy(Y)}, tmp_path / "a.pt")
    for data in (arrays(given), open_path(tmp_path / "a.pt")):
        source = whole(data)
        assert source.is_sparse
        assert torch.equal(source.data.to_dense(), x.float())
    uncoalesced = torch.sparse_coo_tensor([[0, 0, 1], [2, 2, 0]], [1.0, 2.0, 3.0], (2, 4))
    assert values(whole(arrays(uncoalesced, [0, 1]))).tolist() == [[0, 0, 3, 0], [3, 0, 0, 0]]
    wide = torch.sparse_coo_tensor([[0, 1, 2, 3], [0, 10**8, 5, 7]], [1.0] * 4, (4, 2 * 10**8))  # 3 GB if dense
    assert whole(arrays(wide, [0, 0, 1, 1])).data.values().tolist() == [1.0] * 4


def test_a_hybrid_tensor_of_whole_rows(tmp_path):
    given = torch.sparse_coo_tensor([[0, 2]], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (3, 2))
    torch.save({"x": given, "y": torch.tensor([0, 1, 0])}, tmp_path / "a.pt")
    for data in (arrays(given, [0, 1, 0]), open_path(tmp_path / "a.pt")):
        assert values(whole(data)).tolist() == [[1, 2], [0, 0], [3, 4]]


def test_a_sparse_matrix_stays_sparse():
    x = np.where(X > 0, X, 0).astype(np.float32)
    given, dense = (whole(arrays(kind(x))) for kind in (csc_array, np.asarray))
    assert given.is_sparse
    assert given.data.is_sparse
    assert not dense.is_sparse
    assert given.fingerprint() == dense.fingerprint()
    some = torch.tensor([[3, 0], [7, 3]])
    assert torch.equal(given.read(some, torch.device("cpu")), dense.read(some, torch.device("cpu")))
    wide = csr_matrix((np.ones(4), ([0, 1, 2, 3], [0, 10**8, 5, 7])), shape=(4, 2 * 10**8))  # 3 GB if it were dense
    assert whole(arrays(wide, [0, 0, 1, 1])).data.values().tolist() == [1.0] * 4
    x[5, 1] = np.inf
    with pytest.raises(UserError, match="sample 5 holds NaN, infinity"):
        arrays(csr_matrix(x)).opened()
    skipping = Arrays.from_arrays(csr_matrix(x), Y, on_bad_sample="skip")
    assert len(whole(skipping)) == len(X) - 1
    with pytest.raises(UserError, match="holds complex"):
        arrays(csr_matrix(x.astype(complex))).opened()


def test_sparse_files(tmp_path):
    x = X * (X > 0)
    save_npz(tmp_path / "x.npz", csr_matrix(x))
    np.save(tmp_path / "y.npy", Y)
    dump_svmlight_file(x, Y, str(tmp_path / "a.svm"), zero_based=False)
    dump_svmlight_file(x[:, :3], Y, str(tmp_path / "new.svm"), zero_based=False)
    for name in ("x.npz", "a.svm"):
        data = open_path(tmp_path / name)
        assert whole(data).class_names == ("0", "1", "2", "3")
        assert whole(data).labels.tolist() == Y.tolist()
        np.testing.assert_allclose(values(whole(data)), x, rtol=1e-6)
        new, _ = data.unlabelled(str(tmp_path / "new.svm"))  # its last columns are 0, and therefore not in the file
        np.testing.assert_allclose(values(new), x * [1, 1, 1, 0, 0], rtol=1e-6)
    (tmp_path / "b.svm").write_text("1 99999999999:1\n0 1:1\n")
    with pytest.raises(UserError, match=r"b\.svm' cannot be read as svmlight \(value too large"):
        open_path(tmp_path / "b.svm").opened()
    (tmp_path / "b.svm").write_text("a b c\n")
    with pytest.raises(UserError, match=r"b\.svm' cannot be read as svmlight \("):
        open_path(tmp_path / "b.svm").opened()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_that_claim_to_be_huge(tmp_path, name):
    head = BytesIO()
    write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 5)})
    if name == "a.npy":
        (tmp_path / name).write_bytes(head.getvalue() + bytes(80))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x.npy", head.getvalue() + bytes(80))
            archive.writestr("y.npy", b"")
    with pytest.raises(UserError, match=r"^[^\n]*(cannot be read|does not fit into memory)[^\n]*$"):
        Arrays(str(tmp_path / name)).opened()


def test_arrays_that_are_not_used(tmp_path, recwarn):
    path = save(tmp_path / "a.npz", pixels=X, kind=Y, groups=Y, x_test=X, y_test=Y, ids=Y)
    Arrays(path, x="pixels", y="kind").opened()
    told = [str(one.message) for one in recwarn if "not used" in str(one.message)]
    assert len(told) == 1
    assert "a.npz' has arrays that are not used, ids, x_test, y_test: if they are needed, set x and y" in told[0]
    Arrays(save(tmp_path / "b.npz", x=X, y=Y, groups=Y, x_test=X, y_test=Y)).opened()
    assert sum("not used" in str(one.message) for one in recwarn) == 1


def test_image_files_are_made_to_look_like_the_samples(tmp_path, monkeypatch):
    x = np.zeros((40, 20, 20, 3), np.uint8)
    sample = arrays(x).convert(Image.new("RGB", (50, 40), "red"))
    assert sample.shape == (3, 20, 20)
    assert sample[0].min() == 1
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "new" / "a").mkdir(parents=True)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "new" / "a" / "1.png")
    source, names = arrays(x).unlabelled(str(tmp_path / "new"))
    assert names == ("a/1.png",)
    assert torch.equal(source.read(torch.tensor(0), torch.device("cpu")), sample)
    with pytest.raises(UserError, match=r"float32 and shape .* are not square uint8 images"):
        arrays().convert(Image.new("RGB", (50, 40)))


def test_samples_are_shown():
    shown = whole(arrays(IMAGES[:, None].repeat(3, 1).astype(np.float64) - 100)).show(1)
    assert shown.shape == (3, 6, 6)
    assert 0 <= shown.min() < shown.max() <= 1
    assert whole(arrays(X.repeat(2, 1))).show(0).endswith(", ...")


def replaced(array, place, value):
    array = np.array(array, dtype=np.result_type(array, type(value)) if not isinstance(value, str) else object)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: arrays(X.astype(np.float64) * 1e300), "sample 0 holds NaN, infinity or a value beyond float32"),
        (lambda: arrays(val=(replaced(X, (1, 1), np.nan), Y)), "arrays val: sample 1 holds NaN"),
        (lambda: arrays(X[:, 0]), r"must be samples \(N, \*shape\), but has shape \(40,\): add a second axis"),
        (lambda: arrays(X[:0], Y[:0]), r"'x' of shape \(0, 5\) is empty"),
        (lambda: arrays(X.astype(str)), "'x' holds <U32, but samples must be real numbers"),
        (lambda: arrays(X.astype(complex)), "'x' holds complex128, but samples must be real numbers"),
        (lambda: arrays([[{}]] * 40), "'x' holds Python objects"),
        (lambda: arrays([[1.0], [2.0, 3.0]], [0, 1]), "'x' holds rows of different lengths"),
        (lambda: arrays(3), "'x' must be an array, but is of type int"),
        (lambda: arrays(X, channels_last=True), r"channels_last is for images .* is \(40, 5\): leave it out"),
        (lambda: arrays(y=Y[:39]), "'y' holds 39 values for 40 samples: give one for each"),
        (lambda: arrays(y=np.eye(4)[Y]), r"has shape \(40, 4\), one-hot: pass y.argmax"),
        (lambda: arrays(y=X), r"must hold one label for each sample, \(N,\), but has shape \(40, 5\)"),
        (lambda: arrays(y=Y + 0.5), "'y' holds 0.5 for sample 0, but labels are whole numbers up"),
        (lambda: arrays(y=replaced(Y, 6, np.nan)), "'y' holds nan for sample 6"),
        (lambda: arrays(y=replaced(Y.astype(str), 6, "")), "'y', sample 6: the label is empty: fill"),
        (lambda: arrays(y=np.array(["a", None] * 20, dtype=object)), "'y', sample 1: the label is empty"),
        (lambda: arrays(y=["a", "b", float("nan")] * 10), "'y', sample 2: the label is empty"),
        (lambda: arrays(y=np.array([1, {}] * 20, dtype=object)), "'y' holds Python objects"),
        (lambda: arrays(y=Y * 1e300), "'y' holds 1e\\+300 for sample 1, but labels are whole numbers up to"),
        (lambda: arrays(y=[1, None] * 20), "'y' holds nan for sample 1"),
        (lambda: arrays(y=np.array(["a", "nan"] * 20)), "'y', sample 1: the label is 'nan', a missing value"),
        (lambda: arrays(y=np.array(["1", "1.0"] * 20)), "sample 1: the label is '1.0', but elsewhere '1', the same"),
        (
            lambda: arrays(y=np.array(["a", "\ud800"] * 20)),
            r"sample 1: the label is '\\ud800', which is not valid",
        ),
        (lambda: arrays(torch.zeros(1, 1).expand(10**9, 10**6)), "needs 3,725,290 GiB of memory, but this machine has"),
        (lambda: arrays(csr_matrix((10, 10**12))), r"'x' of shape \(1, 1000000000000\) needs 3,725 GiB"),
        (lambda: arrays(y=Y.astype(complex)), "'y' holds complex128"),
        (lambda: arrays(y=[b"\xff", b"a"] * 20), "bytes that are not UTF-8"),
        (lambda: arrays(val=(X[:, :4], Y)), r"samples of val have the shape \(4,\), but those of train \(5,\)"),
        (lambda: arrays(IMAGES, val=(IMAGES / 255, Y)), "val .*shape"),
        (
            lambda: arrays(IMAGES[:, None], val=(IMAGES[:, None] / 255, Y)),
            "val are float32, but .* uint8",
        ),
        (lambda: arrays(val=X), r"val must be a pair \(samples, labels\), but is a ndarray"),
        (lambda: arrays(y=None), "samples 'x' without labels: add them, set y to"),
        (lambda: arrays(on_bad_sample="no"), "on_bad_sample must be one of error, skip"),
    ],
)
def test_one_sentence(build, words):
    with pytest.raises(UserError, match=words) as caught:
        build().opened()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ({"a": X}, {}, "a.npz' has no samples and labels called x or X .* only a: set x and y"),
        ({"x": X}, {}, "a.npz' has the samples 'x' without labels"),
        ({"y": Y}, {}, "a.npz' has 'y' without its samples"),
        ({"x": X, "X": X, "y": Y}, {}, "has both 'x' and 'X': set x to"),
        ({"x": X, "y": Y}, {"x": "xs"}, r"has no array 'xs' \(x\), only x, y"),
        ({"pictures": X, "y": Y}, {"x": "picture"}, "Did you mean pictures?"),
        ({"x": X, "y": Y, "x_test": X}, {}, "the samples 'x_test' without labels"),
        ({"x_test": X, "y_test": Y}, {}, "has no samples and labels called x"),
        ({"x": X, "y": Y, "split": Y}, {}, "sample 0: 'split' holds '0', but must hold one of train, val"),
        ({"x": X, "y": Y, "split": ["val"] * 40}, {}, "no rows for train in 'split', only for val"),
        ({"x": X, "y": Y, "split": ["train"]}, {}, "'split' holds 1 values for 40 samples"),
        ({"x": X, "y": Y}, {"labels_path": "y.npy"}, "labels_path is the .npy file of the labels of a"),
        ({"x": X, "y": Y}, {"path": "b.npz"}, "array file '.*b.npz' does not exist. Did you mean a.npz"),
        ({"x": X, "y": Y}, {"path": "table.csv"}, "table.csv' must end in .npz.*use the collection Table"),
        ({"x": X, "y": Y}, {"path": "."}, "is a folder"),
    ],
)
def test_one_sentence_of_files(tmp_path, content, options, words):
    np.savez(tmp_path / "a.npz", **content)
    (tmp_path / "table.csv").write_text("a,b")
    path = tmp_path / options.get("path", "a.npz")
    with pytest.raises(UserError, match=words) as caught:
        Arrays(**options | {"path": str(path)}).opened()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.hdf5", b"x", "must end in .npz"),
        ("a.npz", b"", "it is empty"),
        ("a.npz", b"PK\x03\x04rest", "cannot be read as arrays of numpy"),
        ("a.pt", b"nothing", "cannot be read as tensors"),
        ("a.pt", pickle.dumps(print), "cannot be read as tensors"),
        ("a.safetensors", b"nothing", "cannot be read as safetensors"),
    ],
)
def test_one_sentence_of_damaged_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        Arrays(str(tmp_path / name)).opened()
    assert "\n" not in str(caught.value)


def test_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([print], dtype=object), y=Y)
    with pytest.raises(UserError, match="Python objects"):
        Arrays(str(tmp_path / "a.npz")).opened()
