"""Image files are found in trees and zips; what cannot be used is named."""

import os
import warnings
import zipfile

import pytest
from image_trees import classes_of, opened, picture, write_tree, write_zip

from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def test_where_names_the_file():
    assert ImageFile("a", "b/c.png").where == "'a/b/c.png'"
    assert ImageFile("a.zip", "b/c.png", zipped=True).where == "'b/c.png' in 'a.zip'"


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
    assert any("that contains it" in problem for problem in problems["loop"])
    assert opened(root, on_bad_sample="skip")[0].class_names[0] == "class 0"


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_zip_members_that_would_leave_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match=r"a\.zip' holds the member '.*', which would be unpacked outside"):
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


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"toys '.*nothing' does not exist"):
        open_tree(tmp_path / "nothing", "toys")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    root = write_tree(tmp_path / "tree")
    os.mkfifo(root / "class 0" / "pipe.png")
    with pytest.raises(UserError, match=r"class 0/pipe\.png' is not a regular file"):
        opened(root)
