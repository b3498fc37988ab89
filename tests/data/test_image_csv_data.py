"""Labelled images listed by a table: what is served and what is refused."""

import shutil

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from metatransfer.data.image_csv_data import ImageCSVDataModule
from metatransfer.errors import UserError


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


def table(folder, lines, header="filename,label", file="list.csv", encoding="utf-8"):
    (folder / file).write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    return ImageCSVDataModule(str(folder / file), image_size=6, batch_size=4)


def changed(data, **options):
    return ImageCSVDataModule(data.path, **{"image_size": 6, "batch_size": 4, **options})


def counts(data):
    return {name: split.counts.tolist() for name, split in data.splits.items()}


def test_rows_are_divided(images):
    data = table(images, rows())
    data.setup()
    assert data.class_names == ("high", "low")
    assert counts(data) == {"train": [4, 7], "val": [1, 1], "test": [1, 2]}
    assert data.skipped == {"all": 0}
    assert data.sample_shape() == (3, 6, 6)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert ((batch.x[:, 0, 0, 0] * 255).round() < 95).long().tolist() == batch.y.tolist()
    again = changed(data)
    assert all(again.split(name).indices.tolist() == split.indices.tolist() for name, split in data.splits.items())
    assert changed(data, labels_per_class=3).class_counts.tolist() == [3, 3]
    assert changed(data, seed=1).split("train").indices.tolist() != data.split("train").indices.tolist()
    assert data.protocol()["image_size"] == 6
    assert data.show("test", 1).shape == (3, 6, 6)


def test_the_order_of_the_rows_is_no_matter_to_the_labels(images):
    data = table(images, rows(reversed(range(16))), encoding="utf-8-sig")
    batch = next(iter(data.test_dataloader()))
    assert ((batch.x[:, 0, 0, 0] * 255).round() < 95).long().tolist() == batch.y.tolist()


def test_a_column_of_splits(images):
    words = ["train"] * 6 + ["Validation"] * 3 + ["TEST"] * 2 + ["train"] * 3 + ["test"] * 2
    lines = [f"{row},{word}" for row, word in zip(rows(), words, strict=True)]
    data = table(images, lines, "filename,label,part")
    assert counts(data)["train"] == [4, 7]  # the column is not asked for
    data = changed(data, split="part", balance="oversample")
    assert counts(data) == {"train": [3, 6], "val": [0, 3], "test": [3, 1]}
    assert data.protocol()["split"] == "as given"
    assert next(iter(data.train_dataloader())).y.bincount().tolist() == [2, 2]
    no_test = [line for line in lines if not line.lower().endswith("test")]
    data = changed(table(images, no_test, "filename,label,part"), split="part")
    with pytest.raises(UserError, match="has no test split"):
        data.setup("test")


@pytest.mark.parametrize("packed", [False, True])
def test_other_columns_and_places(images, packed):
    root = images / "pictures"
    if packed:
        root = shutil.make_archive(str(images / "packed"), "zip", root)
    lines = [row.replace(",", "\t") for row in rows(name="./p{:02d}")]
    data = table(images, lines, "id\tkind", "list.tsv")
    data = changed(data, root=str(root), file="id", label="kind", suffix=".png", channels=1)
    assert data.sample_shape() == (1, 6, 6)
    assert counts(data) == {"train": [4, 7], "val": [1, 1], "test": [1, 2]}


def test_backslashes_quotes_and_words_that_look_missing(images):
    lines = [f'"pictures\\p{i:02d}.png",{"none" if i < 8 else "a, b"}' for i in range(16)]
    data = table(images, [line.replace("a, b", '"a, b"') for line in lines])
    assert data.class_names == ("a, b", "none")


def test_images_that_are_missing_are_left_out_on_demand(images):
    (images / "pictures" / "p03.png").unlink()
    (images / "pictures" / "p04.png").write_bytes(b"x")
    data = table(images, rows())
    with pytest.raises(UserError, match=r"list\.csv', line 5: 'pictures/p03\.png' does not exist in .*=skip"):
        data.setup("fit")
    data = changed(data, on_bad_sample="skip")
    assert sum(map(len, data.splits.values())) == 14
    assert data.skipped == {"all": 2}


def test_predict(images):
    data = changed(table(images, rows()), predict=str(images / "pictures"))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [name for batch in batches for name in batch.files] == [f"p{i:02d}.png" for i in range(16)]
    shown = torch.cat([batch.x for batch in batches])[:, 0, 0, 0] * 255
    torch.testing.assert_close(shown, 10.0 * torch.arange(16))
    with pytest.raises(UserError, match="nothing is given to label"):
        table(images, rows()).setup("predict")


def test_the_command_line_knows_the_arguments_of_the_base():
    parser = ArgumentParser()
    parser.add_class_arguments(ImageCSVDataModule, "data")
    options = parser.parse_args(["--data.path=x.csv", "--data.labels_per_class=5"]).data
    assert (options.file, options.labels_per_class, options.batch_size) == ("filename", 5, 32)


BYTES = {
    "empty": b"",
    "header": b"filename,label\n",
    "latin": "filename,label\na.png,übel\n".encode("latin-1"),
    "utf16": "filename,label\na.png,b\n".encode("utf-16"),
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
        ("latin", {}, "line 1 or later: this is no UTF-8 text: save it as UTF-8"),
        ("utf16", {}, "this is no UTF-8 text: save it as UTF-8"),
        ("quote", {}, "the row from line 3 on: unexpected end of data: mend its quotes"),
        ("short", {}, "line 2: 1 fields, but there are 2 columns"),
        ("columns", {}, "two columns called 'label'"),
        ("nul", {}, "list.csv'"),
        (rows(), {"label": "labels"}, r"no column 'labels' \(label\), only filename, label. Did you mean label"),
        (rows(), {"file": "path"}, r"no column 'path' \(file\), only filename, label"),
        (rows(), {"split": "split"}, r"no column 'split' \(split\), only"),
        (rows(), {"delimiter": "::"}, "delimiter must be one character"),
        (rows(), {"root": "nowhere"}, "image folder 'nowhere' does not exist"),
        (rows(name="pictures/p{:02d}"), {}, r"line 12: 'pictures/p10' does not exist in .*set suffix to '.png'"),
        (rows(name="../x/p{:02d}.png"), {}, "line 12: '../x/p10.png' does not exist in"),
        ([*rows(), "pictures/p03.png, "], {}, "line 18: 'label' is empty: complete the row or remove it"),
        ([*rows(), ",low"], {}, "line 18: 'filename' is empty"),
        ([*rows(), *rows([3])], {}, "line 18: 'pictures/p03.png' stands already in line 5: keep one"),
        ([*rows(), "./pictures/p03.png,high"], {}, "already in line 5, as 'low' and as 'high': keep one"),
        ([*rows(), "pictures,high"], {}, "pictures' is no regular file"),
        (rows(range(9)), {}, r"list.csv' has one class only \('low'\)"),
        (rows(range(11)), {}, "class 'high' has 1 sample, but needs one for each of train, val, test"),
        (rows(), {"labels_per_class": 5}, "more than class 'high' has for training, 4"),
        (rows(), {"split": "label"}, "line [0-9]+: column 'label' holds '(high|low)', but must hold one of train"),
    ],
)
def test_one_sentence(images, lines, options, words):
    data = table(images, [] if isinstance(lines, str) else lines)
    if isinstance(lines, str):
        (images / "list.csv").write_bytes(BYTES[lines])
    with pytest.raises(UserError, match=words) as caught:
        changed(data, **options).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("val", "column 'split' says train in no row"),
        ("tset", "line 2: column 'split' holds 'tset', but must hold one of train, val"),
        ("", "line 2: 'split' is empty"),
        ("unseen", "list.csv' val has a class that the training has no sample of .'high'"),
    ],
)
def test_one_sentence_of_splits(images, parts, words):
    if parts == "unseen":
        lines = rows(range(9), more=",train") + rows([10], more=",val") + ["pictures/p11.png,mid,train"]
    else:
        lines = rows(more=f",{parts}")
    data = table(images, lines, "filename,label,split")
    with pytest.raises(UserError, match=words) as caught:
        changed(data, split="split").setup("fit")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path):
    (tmp_path / "list.csv").write_text("")
    with pytest.raises(UserError, match=r"table '.*lists\.csv' does not exist. Did you mean list\.csv"):
        ImageCSVDataModule(str(tmp_path / "lists.csv")).setup("fit")
    (tmp_path / "list.xlsx").write_text("")
    with pytest.raises(UserError, match=r"must end in \.csv"):
        ImageCSVDataModule(str(tmp_path / "list.xlsx")).setup("fit")
