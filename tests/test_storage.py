from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from metatransfer.storage import (
    atomic_file,
    cache_file,
    cache_folder,
    csv_text,
    forget_old,
    keep_array,
    kept_array,
    short_path,
    write_atomically,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["zwölf\n", b"\x00\xff"])
def test_a_file_is_written_with_its_folder_and_without_leftovers(tmp_path, content):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_file(path) as draft:
            draft.write_text("half of the n")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("features") == tmp_path / "features"
    assert cache_folder("features", "~/mine") == Path.home() / "mine"
    monkeypatch.delenv("METATRANSFER_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "metatransfer"


def test_short_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "a" / "b") == os.path.join("a", "b")
    assert short_path(tmp_path.parent / "c") == str(tmp_path.parent / "c")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shape", [(3, 2), (0, 2)])
def test_an_array_and_its_note_come_back(tmp_path, mapped, shape):
    path = cache_file(tmp_path, "x", "key")
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    keep_array(path, array, {"1": "bad"})
    found = kept_array(path, shape, np.float32, mapped)
    assert found.note == {"1": "bad"}
    np.testing.assert_array_equal(found.array, array)
    assert kept_array(path, (9, 9), np.float32, mapped) is None
    assert kept_array(path, shape, np.uint8, mapped) is None


def test_damage_is_noticed(tmp_path):
    path = cache_file(tmp_path, "x", "key")
    assert kept_array(path, (2000,), np.uint8) is None
    keep_array(path, np.zeros(2000, np.uint8))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert kept_array(path, (2000,), np.uint8) is None
    path.write_bytes(content[:-50])
    assert kept_array(path, (2000,), np.uint8, mapped=True) is None


def test_keys_do_not_run_into_each_other(tmp_path):
    assert cache_file(tmp_path, "x", "ab", "c") != cache_file(tmp_path, "x", "a", "bc")


def test_old_files_are_forgotten(tmp_path):
    for name in ("x-1.npy", "x-2.npy", ".x-3.part", "y-1.npy"):
        (tmp_path / name).touch()
    old = time.time() - 61 * 86400
    for name in ("x-1.npy", ".x-3.part", "y-1.npy"):
        os.utime(tmp_path / name, (old, old))
    forget_old(tmp_path, "x")
    assert names(tmp_path) == ["x-2.npy", "y-1.npy"]


def test_formulas_are_escaped_and_numbers_are_not():
    rows = [["=cmd|' /C calc'!A0", "+x", "-", "@SUM(1)", "\tx"], ["-1", "+2.5", -3, "1e5", "a=b, c"]]
    assert csv_text(rows) == "'=cmd|' /C calc'!A0,'+x,'-,'@SUM(1),'\tx\n-1,+2.5,-3,1e5,\"a=b, c\"\n"
