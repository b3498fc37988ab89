"""MATLAB files of labelled arrays, and vectors of bytes, which are counts."""

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix

from metatransfer.data.collections import Arrays
from metatransfer.data.readers.array_files import open_arrays
from metatransfer.errors import UserError

COUNTS = np.random.default_rng(0).integers(0, 200, (30, 6)).astype(np.uint8)
IMAGES = np.random.default_rng(1).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
Y = 1 + np.arange(30) % 3


def file(folder, **content):
    path = str(folder / "a.mat")
    savemat(path, content)
    return path


def whole(path, **options):
    source = Arrays(path, **options).opened()["all"]
    return source, source.read(torch.arange(len(source)), torch.device("cpu")).numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int16, ">f4"])
@pytest.mark.parametrize("column", [True, False])
def test_features_and_labels(tmp_path, dtype, column):
    y = Y.astype(np.uint8)
    path = file(tmp_path, fts=COUNTS.astype(dtype), labels=y[:, None] if column else y)
    source, x = whole(path)
    assert source.class_names == ("1", "2", "3")
    assert x.dtype == np.float32
    assert np.array_equal(x, COUNTS.astype(np.float32))
    assert np.array_equal(source.labels, Y - 1)


def test_images(tmp_path):
    _, x = whole(file(tmp_path, X=IMAGES, y=Y[:, None]))
    np.testing.assert_allclose(x, IMAGES.transpose(0, 3, 1, 2) / np.float32(255), rtol=1e-6)


def test_names(tmp_path):
    path = file(tmp_path, x=COUNTS, features=COUNTS * 0, labels=Y)
    assert whole(path)[1].any()  # the usual names first
    assert not whole(path, x="features")[1].any()
    path = file(tmp_path, fts_train=COUNTS, labels_train=Y, fts_test=COUNTS[:3], labels_test=Y[:3])
    assert len(Arrays(path).opened()["test"]) == 3
    path = file(tmp_path, other=COUNTS, names=np.array(["ant", "bee", "cat"] * 10))
    assert whole(path, x="other", y="names")[0].class_names == ("ant", "bee", "cat")


def test_counts_of_any_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=COUNTS, y=Y)
    assert np.array_equal(whole(str(tmp_path / "a.npz"))[1], COUNTS.astype(np.float32))
    new, _ = Arrays(str(tmp_path / "a.npz")).unlabelled(str(tmp_path / "a.npz"))
    assert np.array_equal(new.data.numpy(), COUNTS.astype(np.float32))


def test_sparse_features(tmp_path):
    assert np.array_equal(whole(file(tmp_path, fts=csc_matrix(COUNTS.astype(float)), labels=Y))[1], COUNTS)


CELLS = np.empty((30, 1), dtype=object)
CELLS[:, 0] = [[1.0]] * 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"fts": CELLS, "labels": Y}, "'fts' is a cell array, but must be an array of numbers"),
        ({"fts": COUNTS, "labels": CELLS}, "'labels' is a cell array"),
        ({"fts": {"a": 1.0}, "labels": Y}, "'fts' is a struct"),
        ({"fts": COUNTS + 1j, "labels": Y}, "samples must be real numbers"),
        ({"fts": COUNTS}, "'fts' without labels"),
        ({"fts": COUNTS, "features": COUNTS, "labels": Y}, "has both 'features' and 'fts': set x to"),
        ({"fts": COUNTS, "labels": Y[:29]}, "'labels' holds 29 values for 30 samples"),
    ],
)
def test_one_sentence(tmp_path, content, words):
    with pytest.raises(UserError, match=words) as caught:
        Arrays(file(tmp_path, **content)).opened()
    assert "\n" not in str(caught.value)


def hdf5(version):
    """The beginning of a MATLAB 7.3 file: its text, version and byte order, then that of HDF5."""
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + version + b"IM"
    return text.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            hdf5(b"\x00\x02"),
            r"a\.mat' is a MATLAB file of version 7\.3, which is not supported: save it with save\(",
        ),
        (b"", r"a\.mat' cannot be read as a MATLAB file"),
        (b"no such thing" * 40, r"a\.mat' cannot be read as a MATLAB file"),
    ],
)
def test_one_sentence_of_other_files(tmp_path, content, words):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        Arrays(str(tmp_path / "a.mat")).opened()
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_off(tmp_path):
    path = file(tmp_path, fts=np.random.default_rng(0).random((30, 60)), labels=Y)
    with open(path, "rb+") as opened:
        opened.truncate(4000)
    with pytest.raises(UserError, match="'fts' cannot be read") as caught:
        open_arrays(path)["fts"]
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="'fts' without labels") as caught:  # the labels are behind the cut
        Arrays(path).opened()
    assert "\n" not in str(caught.value)
