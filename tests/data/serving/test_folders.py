"""Prediction from folders, as users really leave them."""

import numpy as np
import pytest
import torch
from image_trees import write_zip
from PIL import Image, ImageDraw

from metatransfer import EpisodicDataModule, Glyphs, ImageFolder, PredictFolders
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import ImageLook, decode
from metatransfer.data.serving.folders import prediction_task
from metatransfer.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


def task_of(support, query, **options):
    """The task of two folders whose images have 4x4 grey pixels."""
    return prediction_task(str(support), str(query), ImageFolder("unused", image_size=4, channels=1, **options))


def picture(path, value=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    for label, values in (("b", (10, 20)), ("a", (30,))):
        for value in values:
            picture(tmp_path / "support" / label / f"{value}.png", value)
    picture(tmp_path / "query" / "z.png", 50)
    picture(tmp_path / "query" / "deep" / "er" / "y.PNG", 60)
    return tmp_path / "support", tmp_path / "query"


def test_the_task(folders):
    task = task_of(*folders)
    assert task.support_labels == ("a", "b", "b")
    assert (task.support_x[:, 0, 0, 0] * 255).round().tolist() == [30, 10, 20]
    assert task.files == ("deep/er/y.PNG", "z.png")
    assert (task.query_x[:, 0, 0, 0] * 255).round().tolist() == [60, 50]
    assert task.support_x.shape == (3, 1, 4, 4)


def test_hidden_and_foreign_files_are_left_out(folders):
    support, query = folders
    picture(query / ".hidden.png")
    picture(query / ".git" / "x.png")
    picture(support / ".cache" / "x.png")
    picture(support / "a" / "._30.png")
    (support / "a" / ".DS_Store").write_bytes(b"x")
    (support / "readme.txt").write_text("not a label")
    (query / "notes.txt").write_text("not an image")
    task = task_of(*folders)
    assert task.files == ("deep/er/y.PNG", "z.png")
    assert task.support_labels == ("a", "b", "b")


def test_a_folder_with_the_name_of_an_image_is_a_folder(folders):
    picture(folders[1] / "screenshot.png" / "inner.png", 70)
    assert task_of(*folders).files == ("deep/er/y.PNG", "screenshot.png/inner.png", "z.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, q: (s.with_name("suport"), q), ["support folder", "does not exist", "Did you mean support?"]),
        (lambda s, q: (s, q.with_name("nowhere")), ["query folder", "nowhere", "does not exist"]),
        (lambda s, q: (s, q / "z.png"), ["predict folder", "z.png'", "cannot be read as a zip file"]),
        (
            lambda s, q: (s / "a", q),
            ["support folder", "<label>/<image>", "at least two", "has '30.png' outside of such a folder"],
        ),
        (lambda s, q: ((s / "one").mkdir() or (picture(s / "one" / "x" / "y.png") and s / "one"), q), ["has 1"]),
        (lambda s, q: ((s / "empty").mkdir() or s, q), ["support folder", "but has the folder 'empty' without images"]),
        (lambda s, q: (s, (q / "none").mkdir() or q / "none"), ["none' holds no image"]),
        (lambda s, q: (s, (q / "bad.png").write_bytes(b"no image") and q), ["bad.png", "cannot be read as an image"]),
        (lambda s, q: (s, (q / "nil.png").write_bytes(b"") or q), ["nil.png", "cannot be read as an image"]),
        (lambda s, q: (s, (q / "x.ppm").write_bytes(b"P6\nab cd\n") and q), ["x.ppm", "cannot be read as an image"]),
        (lambda s, q: (s, (q / "w.pgm").write_bytes(b"P5 4 x 255\n0000") and q), ["w.pgm", "cannot be read as an"]),
    ],
)
def test_refusals(folders, change, words):
    support, query = change(*folders)
    with pytest.raises(UserError) as caught:
        task_of(support, query)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_files_that_were_cut_off(tmp_path, suffix, share):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    [file] = open_tree(tmp_path, "toys").files()
    assert decode(file, ImageLook(32, 1)).shape == (1, 32, 32)
    path.write_bytes(whole[: int(len(whole) * share)])
    try:
        decode(file, ImageLook(32, 1))  # some formats can be read in part
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_never_end_in_a_traceback(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "bmp", "gif", "ppm"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 100), 3):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                decode(ImageFile(str(tmp_path), path.name), ImageLook(6))
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017


def test_an_image_that_does_not_suit_is_named(folders):
    Image.new("L", (40, 30), 255).save(folders[1] / "z.png")
    with pytest.raises(UserError, match=r"image '.*30\.png': the image of 4x4 pixels is blank"):
        prediction_task(*map(str, folders), Glyphs())


def test_folders_may_be_zip_files(folders, tmp_path):
    # the first with a folder that contains everything
    packed = [write_zip(tmp_path / f"{one.name}.zip", one, n) for one, n in zip(folders, ("support/", ""), strict=True)]
    task, same = task_of(*packed), task_of(*folders)
    assert task.support_labels == same.support_labels
    assert task.files == same.files
    assert torch.equal(task.query_x, same.query_x)


def test_predict_needs_both_folders(folders):
    for arguments in ({}, {"support": str(folders[0])}, {"query": str(folders[1])}):
        with pytest.raises(
            UserError, match=r"predict needs two folders: --data\.predict\.support .* --data\.predict\.query"
        ):
            EpisodicDataModule(Glyphs(), predict=PredictFolders(**arguments)).setup("predict")


def test_predict_serves_the_one_task(tmp_path):
    for name in ("support/a/1.png", "support/b/1.png", "query/1.png"):
        image = Image.new("L", (40, 40), 255)
        ImageDraw.Draw(image).rectangle([10, 10, 25, 30], outline=0, width=3)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    data = EpisodicDataModule(Glyphs(), predict=PredictFolders(str(tmp_path / "support"), str(tmp_path / "query")))
    data.setup("predict")
    [task] = data.predict_dataloader()
    assert task.support_labels == ("a", "b")
    assert task.query_x.shape == (1, 1, 28, 28)
