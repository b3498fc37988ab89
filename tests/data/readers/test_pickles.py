"""Pickles that must not run."""

import os
import pickle

import numpy as np
import pytest

from metatransfer.data.readers.pickles import read_plain_pickle
from metatransfer.errors import UserError


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays(tmp_path, protocol):
    numbers = np.arange(6, dtype=np.int64).reshape(2, 3)
    content = {"a": numbers, "b": np.asfortranarray(numbers).astype(">f4"), "c": ["x", 1, 2.5, None, True]}
    (tmp_path / "p").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_plain_pickle(tmp_path / "p", "")
    assert np.array_equal(found["a"], numbers)
    assert np.array_equal(found["b"], numbers)
    assert found["c"] == content["c"]


class _Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


class _State:
    def __init__(self):
        self.x = 1


def _by_state():
    return pickle.dumps({"data": _State()})


EVIL = {
    "system": lambda: pickle.dumps({"data": _Evil()}),
    "system, protocol 0": lambda: pickle.dumps({"data": _Evil()}, protocol=0),
    "eval": lambda: b'c__builtin__\neval\n(S\'open("ran", "w")\'\ntR.',
    "object": _by_state,
    "instance": lambda: b"(S'touch ran'\nios\nsystem\n.",
    "objects in an array": lambda: pickle.dumps({"data": np.array([{}], dtype=object)}),
    "a name inside numpy": lambda: b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
    "a call of an argument": lambda: b"\x80\x02]K\x01\x85R.",
    "a class called": lambda: b"cnumpy\nndarray\nK\x01\x85R.",
    "persistent": lambda: b"Pabc\n.",
    "an array of pointers": lambda: pickle.dumps(np.zeros(2)).replace(b"f8", b"O8"),
    "a state for a type": lambda: b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00|tb.",
}


@pytest.mark.parametrize("make", EVIL.values(), ids=EVIL)
def test_nothing_a_pickle_names_is_run(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train"
    path.write_bytes(make())
    with pytest.raises(UserError, match=f"'{path}'"):
        read_plain_pickle(path, "get another.")
    assert not (tmp_path / "ran").exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    path = tmp_path / "train"
    path.write_bytes(EVIL["system"]())
    with pytest.raises(
        UserError, match=r"asks for '(posix|nt)\.system', which could run code: do not use this file; get another"
    ):
        read_plain_pickle(path, "get another.")


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle", pickle.dumps([1]), pickle.dumps({"a": 1})[:-3], b"."])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or not a dictionary of arrays .* get another"):
        read_plain_pickle(tmp_path / "train", "get another.")
