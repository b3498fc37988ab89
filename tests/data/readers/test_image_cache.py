"""Decoded images are kept, found again, and made anew when anything changed."""

import multiprocessing
import os
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from image_trees import LOOK, classes_of, entries, everything, opened, picture, write_tree, write_zip

from metatransfer.data.readers import image_look, image_source
from metatransfer.data.readers.image_files import open_tree
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import ImageFileSource, ImageReader, cached_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    image_source._warn_once.cache_clear()
    return tmp_path / "cache" / "images"


def test_the_cache_is_used_and_any_change_is_seen(tmp_path, cache, monkeypatch):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    assert len(entries(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_source, "decode", None)  # would be called without a cache
        assert torch.equal(everything(opened(root)[0]), first)
        moved = root.rename(tmp_path / "moved")
        assert torch.equal(everything(opened(moved)[0]), first)
    path = moved / "class 0" / "0.png"
    status, size = path.stat(), path.stat().st_size
    picture(77).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[: max(size, path.stat().st_size)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as unpacking tools do
    changed = everything(opened(moved)[0])
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1:], first[1:])
    (moved / "class 0" / "1.png").unlink()
    assert len(opened(moved)[0]) == 11
    assert len(entries(cache)) == 3


def test_a_zip_is_known_by_its_checksums(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    path = write_zip(tmp_path / "a.zip", root)
    opened(path)
    other = path.rename(tmp_path / "b.zip")
    os.utime(other, (1, 1))
    opened(other)
    assert len(entries(cache)) == 1
    picture(5).save(root / "class 0" / "0.png")
    opened(write_zip(tmp_path / "b.zip", root))
    assert len(entries(cache)) == 2


def test_another_look_is_another_entry(tmp_path, cache):
    classes = classes_of(write_tree(tmp_path / "tree"))
    looks = ImageLook(6), ImageLook(5), ImageLook(6, 1), ImageLook(6, rule="resize"), ImageLook(6, invert=True)
    for look in looks:
        source, _ = ImageReader(look).labelled(classes, "Toys")
        assert source.sample_shape == look.shape
    assert len(entries(cache)) == len(looks)


def test_a_cut_or_foreign_entry_is_made_again(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    evil = pickle.dumps(np.array([object()], dtype=object))
    for content in (b"", whole[:100], whole[:-1], whole[: len(whole) // 2], evil, whole + b"tail of something"):
        entry.write_bytes(content)
        assert torch.equal(everything(opened(root)[0]), first)
        assert entry.read_bytes() == whole


def test_damage_of_any_kind_is_made_again(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    [entry] = cache.iterdir()
    whole = entry.read_bytes()
    places = [*range(0, 128, 5), 600, len(whole) - 100, len(whole) - 10]  # header, pixels, note, length of the note
    for place in places:
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert torch.equal(everything(opened(root)[0]), first), place
        assert entry.read_bytes() == whole
    entry.write_bytes(whole[:200] + bytes(300) + whole[500:])
    assert torch.equal(everything(opened(root)[0]), first)


def test_a_shared_cache_keeps_the_umask(tmp_path, cache):
    before = os.umask(0o002)
    try:
        opened(write_tree(tmp_path / "tree"))
    finally:
        os.umask(before)
    [entry] = cache.iterdir()
    assert (entry.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o664, 0o775)


def test_what_was_loaded_stays_when_the_cache_goes(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    source, _ = opened(root)
    for entry in cache.iterdir():
        entry.write_bytes(b"")
    assert torch.equal(everything(source), first)


def test_without_a_place_to_write_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    root = write_tree(tmp_path / "tree")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            source, _ = opened(root)
            assert len(source) == 12
    [warning] = [str(one.message) for one in caught]
    assert "decoded images cannot be cached in" in warning
    assert "METATRANSFER_CACHE" in warning


def test_a_full_disk_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    root = write_tree(tmp_path / "tree")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(opened(root)[0]) == 12
    assert entries(cache) == []


def test_old_entries_are_forgotten_and_other_files_are_not(tmp_path, cache):
    cache.mkdir(parents=True)
    now = time.time()
    ages = {"images-" + "0" * 32 + ".npy": 61, ".images-killed.part": 1.1, "mine.npy": 99, ".images-new.part": 0.5}
    for name, days in ages.items():
        (cache / name).write_bytes(b"x")
        os.utime(cache / name, (now, now - days * 86400))
    opened(write_tree(tmp_path / "tree"))
    assert [(cache / name).exists() for name in ages] == [False, False, True, True]


def _open_in_process(root, start, queue):
    start.wait()
    queue.put(opened(root)[0].data.numpy().tobytes())


def test_several_processes_at_once(tmp_path, cache):
    root = write_tree(tmp_path / "tree", classes=5, images=20)
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    processes = [context.Process(target=_open_in_process, args=(root, start, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {opened(root)[0].data.numpy().tobytes()}
    assert len(entries(cache)) == 1


def test_headers_are_kept_too(tmp_path, cache, monkeypatch):
    root = write_tree(tmp_path / "tree")
    (root / "class 0" / "2.png").write_bytes(b"x")
    options = {"on_bad_sample": "skip", "memory_limit": 1}
    source, count = opened(root, **options)
    assert (len(source), count) == (11, 1)
    assert isinstance(source, ImageFileSource)
    assert len(entries(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_source, "_decoded", None)  # would be called without a cache
        assert len(opened(root, **options)[0]) == 11


def test_a_file_that_cannot_be_read_is_named_and_not_remembered(tmp_path, monkeypatch, cache):
    root = write_tree(tmp_path / "tree")
    files = open_tree(root, "toys").files()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(image_look.Path, "read_bytes", refuse)
        problems = cached_images(files, LOOK)[1]
    assert len(problems) == 12
    assert "0.png' cannot be read (Permission denied): check its permissions" in problems[0]
    assert not cached_images(files, LOOK)[1]
