"""Labelled images listed by a table: what is served and the sentence of every mistake."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer.data.collections import ImageTable
from metatransfer.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    """``p00.png`` to ``p15.png``, whose grey is ten times their number, in a folder of their own."""
    (tmp_path / "pictures").mkdir()
    for i in range(16):
        Image.new("L", (8, 7), 10 * i).save(tmp_path / "pictures" / f"p{i:02d}.png")
    return tmp_path


def rows(numbers=range(16), name="pictures/p{:02d}.png", more=""):
    return [f"{name.format(i)},{'low' if i < 10 else 'high'}{more}" for i in numbers]


def table(folder, lines, header="filename,label", name="list.csv", **options):
    (folder / name).write_bytes("\n".join([header, *lines, ""]).encode("utf-8-sig"))
    return ImageTable(str(folder / name), **{"image_size": 6, **options})


def sizes(data):
    return {
        part: dict(zip(source.class_names, source.sizes.tolist(), strict=True))
        for part, source in data.opened().items()
    }


def test_fewer_bits_than_are_stored(images):
    Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(images / "pictures" / "p00.png")
    source = table(images, rows(), bits=12).opened()["all"]
    assert round(float((source.read(torch.arange(16), CPU)[:, 0, 0, 0] * 255)[6])) == 128  # classes are sorted


@pytest.mark.parametrize("order", [range(16), range(15, -1, -1)])
def test_rows_come_undivided(images, order):
    data = table(images, rows(order))
    assert sizes(data) == {"all": {"high": 6, "low": 10}}
    source = data.opened()["all"]
    assert source.sample_shape == (3, 6, 6)
    greys = (source.read(torch.arange(16), CPU)[:, 0, 0, 0] * 255).round()
    assert (greys < 95).long().tolist() == source.labels.tolist()
    assert data.skipped == {"all": 0}
    assert data.protocol() == {"image_size": 6, "channels": 3}


def test_a_column_of_splits(images):
    words = ["train"] * 6 + ["Validation"] * 3 + ["TEST"] * 2 + ["train"] * 3 + ["test"] * 2
    lines = [f"{row},{word}" for row, word in zip(rows(), words, strict=True)]
    header = "filename,label,part"
    assert sizes(table(images, lines, header)) == {"all": {"high": 6, "low": 10}}  # the column is not asked for
    assert sizes(table(images, lines, header, split="part")) == {
        "train": {"high": 3, "low": 6}, "val": {"low": 3}, "test": {"high": 3, "low": 1},
    }  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_other_columns_places_and_endings(images, packed):
    root = images / "pictures"
    if packed:
        root = shutil.make_archive(str(images / "packed"), "zip", root)
    lines = [row.replace(",", "\t") for row in rows(name="./p{:02d}")]
    data = table(images, lines, "id\tkind", "list.tsv", root=str(root), file="id", label="kind", channels=1)
    assert sizes(data) == {"all": {"high": 6, "low": 10}}
    assert data.opened()["all"].sample_shape == (1, 6, 6)


def test_backslashes_quotes_and_words_that_look_missing(images):
    lines = [f'"pictures\\p{i:02d}.png",{"none" if i < 8 else "NA, b"}' for i in range(16)]
    data = table(images, [line.replace("NA, b", '"NA, b"') for line in lines])
    assert sizes(data) == {"all": {"NA, b": 8, "none": 8}}


def test_bad_images_are_left_out_on_demand(images):
    (images / "pictures" / "p03.png").write_bytes(b"x")
    lines = [*rows(), "pictures/gone.png,high"]
    with pytest.raises(UserError, match=r"gone\.png' does not exist .*set on_bad_sample=skip"):
        table(images, lines).opened()
    data = table(images, lines, on_bad_sample="skip")
    assert sizes(data) == {"all": {"high": 6, "low": 9}}
    assert data.skipped == {"all": 2}


def test_a_target_needs_no_labels(images):
    part = table(images, [row.partition(",")[0] for row in rows()], "filename").unlabelled_parts()["all"]
    assert part.withheld is None
    greys = (part.source.read(torch.arange(16), CPU)[:, 0, 0, 0] * 255).round().tolist()
    assert greys == [10.0 * i for i in range(16)]  # in the order of the table
    part = table(images, rows()).unlabelled_parts()["all"]
    assert part.withheld.tolist() == ["low"] * 10 + ["high"] * 6


BYTES = {
    "empty": b"",
    "header": b"filename,label\n",
    "latin": "filename,label\na.png,übel\n".encode("latin-1"),
    "quote": b'filename,label\npictures/p00.png,low\n"pictures/p01.png,low\n',
    "short": b"filename,label\npictures/p00.png\n",
    "columns": b"label,label,filename\na,b,c\n",
    "nul": b"filename,label\na\0.png,b\n",
}


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ("empty", {}, "list.csv' is empty: the first row must name the columns"),
        ("header", {}, "has no rows below the names"),
        ("latin", {}, "line 2: byte 0xfc is not UTF-8 text"),
        ("quote", {}, "line 3: a quote of this row is not closed"),
        ("short", {}, "line 2 has 1 fields, but there are 2 columns"),
        ("columns", {}, "two columns called 'label'"),
        ("nul", {}, "list.csv'"),
        (rows(), {"label": "labels"}, r"no column 'labels' \(label\), only filename, label.*Did you mean label"),
        (rows(), {"file": "path"}, r"no column 'path' \(file\), only filename, label"),
        (rows(), {"split": "split"}, r"no column 'split' \(split\), only"),
        (rows(), {"root": "nowhere"}, "image folder 'nowhere' does not exist"),
        (rows(name="../x/p{:02d}.png"), {}, "line 12: '../x/p10.png' does not exist in"),
        ([*rows(), "pictures/p03.png, "], {}, "line 18: the label 'label' is empty: fill it in, or remove the row"),
        ([*rows(), ",low"], {}, "line 18: the file 'filename' is empty"),
        ([*rows(), *rows([3])], {}, "line 18: 'pictures/p03.png' is already in line 5: keep one"),
        ([*rows(), "./pictures/p03.png,high"], {}, "already in line 5, as 'low' and as 'high': keep one"),
        ([*rows(), "pictures/p03,low"], {}, "line 18: 'pictures/p03.png' is already in line 5"),
        ([*rows(), "pictures,high"], {}, "pictures' is not a regular file"),
        (rows(), {"split": "label"}, "line [0-9]+: 'label' holds '(high|low)', but must hold one of train"),
    ],
)
def test_one_sentence(images, lines, options, words):
    data = table(images, [] if isinstance(lines, str) else lines, **options)
    if isinstance(lines, str):
        (images / "list.csv").write_bytes(BYTES[lines])
    with pytest.raises(UserError, match=words) as caught:
        data.opened()
    assert "\n" not in str(caught.value)


def test_a_name_that_may_mean_two_files(images):
    Image.new("L", (8, 7)).save(images / "pictures" / "p03.jpg")
    with pytest.raises(UserError, match=r"line 5: 'pictures/p03' may be pictures/p03.jpg and pictures/p03.png"):
        table(images, rows(name="pictures/p{:02d}")).opened()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("val", "no rows for train in 'split', only for val"),
        ("tset", "line 2: 'split' holds 'tset', but must hold one of train, val"),
        ("", "line 2: the split 'split' is empty"),
    ],
)
def test_one_sentence_of_splits(images, parts, words):
    with pytest.raises(UserError, match=words) as caught:
        table(images, rows(more=f",{parts}"), "filename,label,split", split="split").opened()
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path):
    (tmp_path / "list.csv").write_text("")
    with pytest.raises(UserError, match=r"table '.*lists\.csv' does not exist. Did you mean list\.csv"):
        ImageTable(str(tmp_path / "lists.csv")).opened()


@pytest.mark.parametrize("other", ["pictures/../pictures/p00.png", "./pictures//p00.png", "link/p00.png", "first.png"])
def test_one_file_under_two_names(images, other):
    (images / "link").symlink_to(images / "pictures", target_is_directory=True)
    (images / "first.png").symlink_to(images / "pictures" / "p00.png")
    with pytest.raises(UserError, match=r"'pictures/p00\.png' is already in line 2, as 'low' and as 'x': keep one"):
        table(images, [*rows(), f"{other},x"]).parts()


def test_odd_names_in_a_table(images):
    data = table(images, [*rows(range(8)), "pictures/p09.png,low\0", "pictures/p1\0.png,high"], on_bad_sample="skip")
    assert sizes(data) == {"all": {"low": 8, "low\0": 1}}
    assert data.skipped == {"all": 1}
