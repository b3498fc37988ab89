"""Image files: found in trees and zips, looked at, kept, refused in words."""

import multiprocessing
import os
import pickle
import struct
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data import TensorSource, image_files
from metatransfer.data.image_files import (
    ImageFile,
    ImageFileSource,
    ImageLook,
    cache_folder,
    cached_headers,
    cached_images,
    check_class_names,
    decode,
    fetch,
    open_images,
    open_tree,
)
from metatransfer.errors import UserError

CPU = torch.device("cpu")
LOOK = ImageLook(6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "_warned", set())
    return tmp_path / "cache"


def picture(seed, size=(12, 10), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_tree(root, classes=3, images=4, suffix="png"):
    for c in range(classes):
        for i in range(images):
            path = root / f"class {c}" / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * c + i).save(path)
    return root


def write_zip(path, root, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


def classes_of(path):
    tree = open_tree(path, "toys")
    return {name: tree.files(name) for name in tree.folders()}


def opened(path, **options):
    return open_images(classes_of(path), LOOK, "Toys", **options)


def everything(source):
    return source.read(torch.arange(len(source)), CPU)


# ---- finding


def test_tree_and_zip_give_equal_tensors(tmp_path):
    root = write_tree(tmp_path / "tree")
    (root / ".hidden").mkdir()
    (root / "class 0" / "notes.txt").write_text("no image")
    (root / "class 0" / ".thumb.png").write_bytes(b"no image")
    (root / "class 1" / "deeper").mkdir()
    picture(99).save(root / "class 1" / "deeper" / "x.PNG")
    sources = [opened(root)[0]]
    sources += [opened(write_zip(tmp_path / f"{n}.zip", root, prefix))[0] for n, prefix in enumerate(("", "wrap/per/"))]
    for source in sources:
        assert isinstance(source, TensorSource)
        assert source.class_names == ("class 0", "class 1", "class 2")
        assert source.sizes.tolist() == [4, 5, 4]
        assert torch.equal(source.data, sources[0].data)
        assert source.labels.tolist() == sources[0].labels.tolist()
    lazy, count = opened(tmp_path / "1.zip", memory_limit=10)
    assert isinstance(lazy, ImageFileSource)
    assert count == 0
    assert lazy.file(0).name == "wrap/per/class 0/0.png"
    assert torch.equal(everything(lazy), everything(sources[0]))
    on_disk, _ = opened(root, memory_limit=10)
    assert torch.equal(everything(on_disk), everything(sources[0]))
    assert on_disk.read(torch.tensor([[0, 3, 1]]), CPU).shape == (1, 3, 3, 6, 6)
    assert on_disk.read(torch.empty(2, 0, dtype=torch.int64), CPU).shape == (2, 0, 3, 6, 6)
    assert torch.equal(everything(pickle.loads(pickle.dumps(lazy))), everything(lazy))


def test_a_class_folder_is_no_wrapper(tmp_path):
    root = write_tree(tmp_path / "tree", classes=1)
    assert open_tree(write_zip(tmp_path / "a.zip", root), "toys").folders() == ["class 0"]


def test_links_inside_are_followed_and_links_outside_named(tmp_path):
    root, outside = write_tree(tmp_path / "tree"), tmp_path / "secret.png"
    picture(1).save(outside)
    (root / "class 0" / "inside.png").symlink_to(root / "class 1" / "0.png")
    (root / "class 3").symlink_to(root / "class 2", target_is_directory=True)
    assert opened(root)[0].sizes.tolist() == [5, 4, 4, 4]
    (root / "class 0" / "out.png").symlink_to(outside)
    with pytest.raises(UserError, match=r"class 0/out\.png' is a link to '.*secret\.png', outside of '.*tree'"):
        opened(root)
    source, count = opened(root, on_bad_sample="skip")
    assert count == 1
    assert source.sizes.tolist() == [5, 4, 4, 4]


def test_links_to_a_folder_outside_to_nothing_and_in_a_loop(tmp_path):
    root = write_tree(tmp_path / "tree", classes=1)
    (tmp_path / "other").mkdir()
    links = {"away": tmp_path / "other", "loop": root}
    for name, target in links.items():
        (root / name).symlink_to(target, target_is_directory=True)
    (root / "class 0" / "gone.png").symlink_to(root / "nothing.png")
    problems = {name: [file.problem for file in files if file.problem] for name, files in classes_of(root).items()}
    assert "outside of" in problems["away"][0]
    assert "which does not exist" in problems["class 0"][0]
    assert any("that it lies in" in problem for problem in problems["loop"])
    assert opened(root, on_bad_sample="skip")[0].class_names[0] == "class 0"


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_zip_members_that_would_leave_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match=r"a\.zip' holds the member '.*', which would leave the folder"):
        open_tree(tmp_path / "a.zip", "toys")


def test_zips_that_are_none_or_hold_a_name_twice(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"toys '.*a\.zip' cannot be read as a zip file"):
        open_tree(tmp_path / "a.zip", "toys")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a/x.png", b"1")
        archive.writestr("a/x.png", b"2")
    with pytest.raises(UserError, match=r"b\.zip' holds two members named 'a/x\.png'"):
        open_tree(tmp_path / "b.zip", "toys")


def test_a_damaged_zip_member_is_named(tmp_path):
    root = write_tree(tmp_path / "tree")
    path = write_zip(tmp_path / "a.zip", root)
    content = path.read_bytes()
    position = content.index((root / "class 1" / "2.png").read_bytes())
    path.write_bytes(content[: position + 60] + b"\xff" * 20 + content[position + 80 :])
    with pytest.raises(UserError, match=r"'class 1/2\.png' in '.*a\.zip' cannot be unpacked"):
        opened(path)
    assert opened(path, on_bad_sample="skip")[1] == 1


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"toys '.*nothing' does not exist"):
        open_tree(tmp_path / "nothing", "toys")


# ---- bad samples


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut", "struct"])
@pytest.mark.parametrize("limit", [2**30, 10])
def test_a_corrupt_image_is_named_or_skipped_and_counted(tmp_path, content, limit):
    root = write_tree(tmp_path / "tree", suffix="jpg")
    bad = root / "class 1" / "1.jpg"
    cut = content == "cut"
    if cut:
        content = bad.read_bytes()[:-60]
    if content == "struct":
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + b"\0" * 30
    bad.write_bytes(content)
    if limit == 10 and cut:
        source, count = opened(root, memory_limit=limit)  # only headers are read at set-up
        assert count == 0
        with pytest.raises(UserError, match=r"class 1/1\.jpg' cannot be read as an image"):
            everything(source)
        return
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=r"class 1/1\.jpg' cannot be read as an image .* on_bad_sample=skip to"):
            opened(root, memory_limit=limit)
        source, count = opened(root, on_bad_sample="skip", memory_limit=limit)
        assert count == 1
        assert source.sizes.tolist() == [4, 3, 4]
        assert everything(source).shape == (11, 3, 6, 6)


def test_several_problems_give_the_first_and_a_count(tmp_path):
    root = write_tree(tmp_path / "tree")
    for name in ("class 0/0.png", "class 2/3.png"):
        (root / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 0/0\.png' .* on_bad_sample=skip .* cannot be used, 2 here\."):
        opened(root)


def test_an_empty_class_is_named_or_left_out(tmp_path):
    root = write_tree(tmp_path / "tree")
    (root / "class 9").mkdir()
    with pytest.raises(UserError, match=r"Toys: class 'class 9' holds no image"):
        opened(root)
    source, count = opened(root, on_bad_sample="skip", groups={f"class {c}": f"g{c}" for c in (0, 1, 2, 9)})
    assert count == 1
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert source.groups == ("g0", "g1", "g2")


def test_a_class_that_loses_all_images_is_left_out(tmp_path):
    root = write_tree(tmp_path / "tree", images=1)
    (root / "class 1" / "0.png").write_bytes(b"x")
    source, count = opened(root, on_bad_sample="skip")
    assert count == 1
    assert source.class_names == ("class 0", "class 2")
    assert source.labels.tolist() == [0, 1]


def test_a_file_that_cannot_be_read_is_named_and_not_remembered(tmp_path, monkeypatch, cache):
    root = write_tree(tmp_path / "tree")
    files = open_tree(root, "toys").files()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(image_files.Path, "read_bytes", refuse)
        problems = cached_images(files, LOOK).problems
    assert len(problems) == 12
    assert "0.png' cannot be read (Permission denied): check its permissions" in problems[0]
    assert not cached_images(files, LOOK).problems


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    root = write_tree(tmp_path / "tree")
    os.mkfifo(root / "class 0" / "pipe.png")
    with pytest.raises(UserError, match=r"class 0/pipe\.png' is no regular file"):
        opened(root)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": ["Cat", "dog", "cat"]}, "train has two classes of one name, 'Cat' and 'cat'"),
        ({"train": ["cat"], "test": ["CAT"]}, r"class 'CAT' of test is also in train \(as 'cat'\)"),
        ({"train": ["caf\u00e9", "cafe\u0301"]}, "two classes of one name"),
    ],
)
def test_class_names_that_clash(splits, words):
    with pytest.raises(UserError, match=words):
        check_class_names(splits)


# ---- looking


def test_crop_takes_the_centre_and_resize_everything():
    pixels = np.zeros((6, 18, 3), np.uint8)
    pixels[:, 6:12] = 200
    image = Image.fromarray(pixels)
    assert (ImageLook(6)(image) == 200).all()
    squeezed = ImageLook(6, rule="resize")(image)
    assert squeezed[0, 3].tolist()[0] == 0
    assert squeezed[0, 3, 2] > 150
    assert (ImageLook(6, invert=True)(image) == 55).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_is_converted(mode, channels):
    grey = np.full((8, 8), 51, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    found = ImageLook(4, channels)(image)
    assert found.shape == (channels, 4, 4)
    assert found.dtype == np.uint8
    if mode != "1":
        assert abs(found.astype(int) - 51).max() <= 2


def test_transparent_is_paper():
    assert (ImageLook(4)(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == 255).all()


def test_photographs_stand_upright_and_large_jpegs_are_close(tmp_path):
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[:40] = 250
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = decode(open_tree(tmp_path, "toys").files()[0], LOOK)
    assert found[:, 0].max() < 10
    assert found[:, -1].min() > 240
    with Image.open(tmp_path / "a.jpg") as image:
        assert abs(found.astype(int) - LOOK(image)).max() <= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "image_size must be a number above 0"),
        ({"size": 4, "channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), but is 2"),
        ({"size": 4, "rule": "croop"}, "rule must be one of crop, resize, but is 'croop'. Did you mean crop"),
    ],
)
def test_impossible_looks(options, words):
    with pytest.raises(UserError, match=words):
        ImageLook(**options)


# ---- keeping


def entries(cache):
    return sorted(path.name for path in cache.glob("*"))


def test_the_cache_is_used_and_any_change_is_seen(tmp_path, cache, monkeypatch):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    assert len(entries(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "decode", None)  # would be called without a cache
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
        source, _ = open_images(classes, look, "Toys")
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


def test_what_was_loaded_stays_when_the_cache_goes(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    first = everything(opened(root)[0])
    source, _ = opened(root)
    for entry in cache.iterdir():
        entry.write_bytes(b"")
    assert torch.equal(everything(source), first)


def test_without_a_place_to_write_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    root = write_tree(tmp_path / "tree")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            source, _ = opened(root, cache_dir=str(tmp_path / "file" / "cache"))
            assert len(source) == 12
    [warning] = [str(one.message) for one in caught]
    assert "decoded images cannot be kept in" in warning
    assert "METATRANSFER_CACHE" in warning


def test_a_full_disk_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    root = write_tree(tmp_path / "tree")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_files.np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(opened(root)[0]) == 12
    assert entries(cache) == []


def test_old_entries_are_forgotten_and_other_files_are_not(tmp_path, cache):
    cache.mkdir()
    old, other, recent = (cache / name for name in ("images-" + "0" * 32 + ".npy", "mine.npy", ".images-abc.tmp"))
    for path in (old, other, recent):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (1, 1))
    opened(write_tree(tmp_path / "tree"))
    assert not old.exists()
    assert other.exists()
    assert recent.exists()


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


def test_cache_folder(monkeypatch):
    assert str(cache_folder("here")) == "here"
    assert cache_folder().name == "cache"
    monkeypatch.delenv("METATRANSFER_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "metatransfer")


def test_headers_are_kept_too(tmp_path, cache):
    root = write_tree(tmp_path / "tree")
    (root / "class 0" / "2.png").write_bytes(b"x")
    files = open_tree(root, "toys").files()
    first = cached_headers(files)
    assert list(first) == [2]
    assert len(entries(cache)) == 1
    assert cached_headers(files) == first
    assert cached_headers([]) == {}


def test_forked_readers_of_one_zip_do_not_disturb_each_other(tmp_path):
    root = write_tree(tmp_path / "tree", classes=4, images=10)
    lazy, _ = opened(write_zip(tmp_path / "a.zip", root), memory_limit=10)
    expected = everything(lazy)  # opens the zip in this process, before the workers start
    loader = torch.utils.data.DataLoader(_Reads(lazy), batch_size=None, num_workers=2)
    for _ in range(2):
        assert torch.equal(torch.stack(list(loader)), expected)


class _Reads(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.read(torch.tensor(index), CPU)


def test_where_names_the_file():
    assert ImageFile("a", "b/c.png").where == "'a/b/c.png'"
    assert ImageFile("a.zip", "b/c.png", zipped=True).where == "'b/c.png' in 'a.zip'"


# ---- fetching


@pytest.fixture
def mirror():
    content = {"/good": b"right", "/wrong": b"other"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = content.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


MD5 = "7c4f29407893c334a6cb7a87bf045c0d"  # of b"right"


def test_the_first_mirror_that_gives_the_right_file(tmp_path, mirror):
    target = tmp_path / "new" / "file.zip"
    fetch([f"{mirror}/gone", f"{mirror}/wrong", f"{mirror}/good"], MD5, target)
    assert target.read_bytes() == b"right"
    assert entries(target.parent) == ["file.zip"]


def test_no_mirror_works(tmp_path, mirror):
    target = tmp_path / "file.zip"
    with pytest.raises(UserError, match=rf"could not be downloaded .*404.*MD5 .* instead of.*put it at '{target}'"):
        fetch([f"{mirror}/gone", f"{mirror}/wrong", "http://127.0.0.1:9/x"], MD5, target)
    assert not target.exists()
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
