"""Tables: the encoding against numpy, the division of rows, and the line of every mistake."""

import csv

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from metatransfer.data.collections import Table
from metatransfer.data.sources import of_classes
from metatransfer.errors import UserError

GENERATOR = np.random.default_rng(0)
KINDS = np.repeat([f"k{index}" for index in range(8)], 4)
NUMBERS = GENERATOR.normal(3, 5, size=(32, 2))
COLOURS = np.array(["red", "green", "blue"])[GENERATOR.integers(0, 3, 32)]
SPLIT = np.array(["train"] * 4 + ["val"] * 2 + ["test"] * 2).repeat(4)
ROWS = [
    {"a": NUMBERS[i, 0], "kind": KINDS[i], "colour": COLOURS[i], "b": NUMBERS[i, 1], "part": SPLIT[i]}
    for i in range(32)
]


def write(path, rows=ROWS, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def table(path, **options):
    return Table(path, **{"label": "kind", **options})


def samples(data, split):
    parts = data.opened()
    source = parts[split].encoded(data.encoder(parts["train" if "train" in parts else "all"]))
    return source.read(torch.arange(len(source)), torch.device("cpu")).numpy(), source


def test_the_encoding_is_that_of_the_training_rows(tmp_path):
    data = table(write(tmp_path / "t.csv"), split="part")
    train = SPLIT == "train"
    mean, deviation = NUMBERS[train].mean(0), NUMBERS[train].std(0)
    values = sorted(set(COLOURS[train]))
    for split in ("train", "val", "test"):
        x, source = samples(data, split)
        rows = split == SPLIT
        expected = np.concatenate(
            [(NUMBERS[rows] - mean) / deviation, COLOURS[rows][:, None] == np.array(values)[None]], axis=1
        )
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
        assert [source.class_names[label] for label in source.labels] == KINDS[rows].tolist()


def test_every_form_is_the_same(tmp_path):
    plain = table(write(tmp_path / "t.csv"), split="part")
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    others = [
        table(write(tmp_path / "t.tsv", delimiter="\t"), split="part"),
        table(write(tmp_path / "t.data", delimiter=";"), split="part", delimiter=";"),
        table(str(tmp_path / "t.parquet"), split="part"),
    ]
    for other in others:
        for split in ("train", "val", "test"):
            np.testing.assert_allclose(samples(plain, split)[0], samples(other, split)[0], rtol=1e-6)


def test_undivided_rows_are_encoded_by_those_of_the_training(tmp_path):
    data = table(write(tmp_path / "t.csv"), features=["a", "colour"])
    whole = data.opened()["all"]
    assert whole.class_names == tuple(sorted(set(KINDS)))
    train = of_classes(whole, ["k1", "k3"], "train")
    encoder = data.encoder(train)
    x = train.encoded(encoder).read(torch.arange(8), torch.device("cpu")).numpy()
    rows = np.isin(KINDS, ["k1", "k3"])
    np.testing.assert_allclose(
        x[:, 0], (NUMBERS[rows, 0] - NUMBERS[rows, 0].mean()) / NUMBERS[rows, 0].std(), rtol=1e-5
    )
    assert x.shape[1] == 1 + len(set(COLOURS[rows]))
    assert encoder.size == 0  # no tokens
    assert whole.show(3).startswith("a: ")


def test_the_encoding_of_a_checkpoint(tmp_path):
    path = write(tmp_path / "t.csv")
    data = table(path, split="part")
    encoder = data.encoder(data.opened()["train"])
    again = table(path, split="part").encoder_from(encoder.state())
    rows = data.opened()["test"].data.numpy()
    assert again.key() == encoder.key()
    assert np.array_equal(again(rows), encoder(rows))
    assert table(path).encoder(table(path).opened()["all"]).key() != encoder.key()
    with pytest.raises(UserError, match=r"trained on the columns a, colour, b, but .* has a: set features"):
        table(path, split="part", features=["a"]).encoder_from(encoder.state())


def test_rows_to_label(tmp_path):
    data = table(write(tmp_path / "t.csv"), features=["a", "colour"])
    new = [{"colour": "red", "a": 1.5}, {"colour": "mauve", "a": 2}]
    source, names = data.unlabelled(write(tmp_path / "new.csv", new))
    assert names == ("new.csv:2", "new.csv:3")
    x = source.encoded(data.encoder(data.opened()["all"])).read(torch.arange(2), torch.device("cpu"))
    assert x[:, 1:].sum(1).tolist() == [1, 0]
    with pytest.raises(UserError, match="line 2: column 'a' holds 'x', which is not a number"):
        data.unlabelled(write(tmp_path / "new.csv", [{"colour": "red", "a": "x"}]))


def test_sixty_rows_are_enough(tmp_path):
    rows = [{"x": i, "label": "ab"[i % 2]} for i in range(60)]
    data = Table(write(tmp_path / "t.csv", rows))
    assert data.opened()["all"].sizes.tolist() == [30, 30]


def test_unseen_categories_are_zeros_and_constant_columns_too(tmp_path):
    rows = [{**row, "colour": "purple" if row["part"] == "test" else "red", "b": 7.1} for row in ROWS]
    data = table(write(tmp_path / "t.csv", rows), split="part")
    x, _ = samples(data, "test")
    assert (x[:, 1:] == 0).all()
    assert (samples(data, "train")[0][:, 2] == 1).all()


def test_the_encoder_of_another_table_finds_columns_and_categories_by_name(tmp_path):
    first = table(write(tmp_path / "first.csv"), features=["a", "colour", "b"])
    rows = [{"colour": row["colour"], "b": row["b"], "a": row["a"], "kind": row["kind"]} for row in ROWS[::-1]]
    source = table(write(tmp_path / "other.csv", rows)).opened()["all"]
    encoder = first.encoder(first.opened()["all"])
    x = source.encoded(encoder).read(torch.arange(len(source)), torch.device("cpu")).numpy()
    assert np.array_equal(x[::-1], samples(first, "all")[0])
    rows[0]["colour"] = "purple"
    x = table(write(tmp_path / "more.csv", rows)).opened()["all"].encoded(encoder).read(torch.arange(2), "cpu")
    assert x[:, 2:].sum(1).tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match=r"the first has a, colour \(words\), b, and .* has a, b: list those"):
        table(tmp_path / "first.csv", features=["a", "b"]).opened()["all"].encoded(encoder)


def test_numbers_can_be_categories(tmp_path):
    rows = [{**row, "b": index % 3} for index, row in enumerate(ROWS)]
    path = write(tmp_path / "t.csv", rows)
    assert samples(table(path, features=["a", "b"]), "all")[0].shape[1] == 2
    assert samples(table(path, features=["a", "b"], categorical=["b"]), "all")[0].shape[1] == 4


ODD = {
    "decimal comma": (
        [f"{n / 7:.2f}".replace(".", ",") for n in range(30)],
        "line 2: column 'a' holds '0,00' and 29 other texts",
    ),
    "percent": (
        [f"{n}%" for n in range(30)],
        "begin like numbers: write numbers such as 5.13 without comma",
    ),
    "thousands": ([f"{n * 400:,}" for n in range(30)], "line 5: column 'a' holds '1,200' and 29 other texts"),
    "units": ([f"{n} mm" for n in range(30)], "holds '0 mm'"),
    "dates": ([f"2021-03-{n + 1:02d}" for n in range(30)], "dates as numbers of days; or leave the column out"),
    "underscores": ([f"{n}_000" for n in range(30)], "holds '0_000' and 29"),
    "currency": ([f"€ {n}" for n in range(30)], "holds '€ 0'"),
    "one cell": ([*range(29), "5 mm"], "line 31: column 'a' holds '5 mm', but 29 of its 30 values are numbers: write"),
    "detection limit": ([*["<0.1"] * 16, *(n / 10 for n in range(14))], "line 2: column 'a' holds '<0.1' and 14 other"),
    "names": ([f"name {n}" for n in range(30)], "holds 'name 0' and 29 other words in 30 rows, each of which would be"),
}


@pytest.mark.parametrize("name", ODD)
def test_columns_that_are_nearly_numbers(tmp_path, name):
    """They never become hundreds of categories without being asked for."""
    cells, words = ODD[name]
    path = write(tmp_path / "t.csv", [{"a": cell, "b": n, "kind": "xy"[n % 2]} for n, cell in enumerate(cells)])
    with pytest.raises(UserError, match=r"^[^\n]*in categorical\.$") as caught:
        table(path).opened()
    assert words in str(caught.value)
    assert samples(table(path, categorical=["a"]), "all")[0].shape[1] == 1 + len(set(cells))


@pytest.mark.parametrize("value", ["#N/A", "N/A", "<NA>", "-", "–", "null", "?", ".", "n.a."])
def test_marks_of_missing_values(tmp_path, value):
    rows = [{"a": value if n == 3 else n, "c": "red", "kind": "xy"[n % 2]} for n in range(30)]
    data = table(write(tmp_path / "t.csv", rows), on_bad_sample="skip")
    assert samples(data, "all")[0].shape == (29, 2)
    assert data.skipped == {"all": 1}


def test_categories_that_begin_like_numbers(tmp_path):
    rows = [{"a": ["2wd", "4wd", "1st"][n % 3], "kind": "xy"[n % 2]} for n in range(30)]
    assert samples(table(write(tmp_path / "t.csv", rows)), "all")[0].shape == (30, 3)


def test_times_in_nanoseconds(tmp_path):
    times = pa.array([1609459200000000001 + 86400 * 10**9 * n for n in range(30)], pa.timestamp("ns"))
    columns = {"when": times, "a": list(range(30)), "kind": ["x", "y"] * 15}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert samples(table(str(tmp_path / "t.parquet"), features=["a"]), "all")[0].shape == (30, 1)
    with pytest.raises(UserError, match=r"row 1: column 'when' holds '2021-01-01 .*' and 29 other texts"):
        table(str(tmp_path / "t.parquet")).opened()


def test_groups(tmp_path):
    rows = [{**row, "family": "odd" if int(row["kind"][1]) % 2 else "even"} for row in ROWS]
    path = write(tmp_path / "t.csv", rows)
    source = table(path, group="family").opened()["all"]
    assert source.groups == ("even", "odd") * 4
    with pytest.raises(UserError, match="class 'k0' is in the groups"):
        table(path, group="b").opened()


@pytest.mark.parametrize("value", ["", "NA", "nan", "inf", "-inf", "NULL"])
def test_missing_values_are_named_or_counted(tmp_path, value):
    rows = [dict(row) for row in ROWS]
    rows[5]["b"] = value
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match=r"line 7: column 'b' (holds|is empty).*on_bad_sample=skip"):
        table(path, split="part").opened()
    data = table(path, split="part", on_bad_sample="skip")
    assert [len(source) for source in data.opened().values()] == [15, 8, 8]
    assert data.skipped == {"train": 1, "val": 0, "test": 0}


def text(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


HEAD = "a,kind\n"
BAD = {
    "missing": (lambda p: str(p / "t.csv"), {}, "does not exist"),
    "folder": (lambda p: str(p), {}, "is a folder"),
    "suffix": (lambda p: text(p / "t.xlsx", "x"), {}, "must end in .csv"),
    "empty": (lambda p: text(p / "t.csv", ""), {}, "is empty: the first row must name the columns"),
    "no rows": (lambda p: text(p / "t.csv", HEAD), {}, "has no rows"),
    "quote": (lambda p: text(p / "t.csv", HEAD + '1,x\n2,"y\n3,z\n'), {}, "line 3: a quote of this row"),
    "long": (lambda p: text(p / "t.csv", HEAD + "1,x\n\n2,y,z\n"), {}, "line 4 has 3 fields, but there are 2 columns"),
    "short": (lambda p: text(p / "t.csv", HEAD + "1\n"), {}, "line 2 has 1 fields"),
    "utf-8": (lambda p: text(p / "t.csv", HEAD.encode() + b"1,\xff\n"), {}, "is not UTF-8 text"),
    "double": (lambda p: text(p / "t.csv", "a,kind,a\n1,x,2\n"), {}, "two columns called 'a'"),
    "label": (lambda p: write(p / "t.csv"), {"label": "kid"}, "Did you mean kind?"),
    "feature": (lambda p: write(p / "t.csv"), {"features": ["a", "bb"]}, "no column 'bb' (features), only a, kind"),
    "leak": (lambda p: write(p / "t.csv"), {"features": ["a", "kind"]}, "would reveal the answer"),
    "only label": (lambda p: text(p / "t.csv", "kind\nx\ny\n"), {}, "has no column other than the label"),
    "no label": (lambda p: text(p / "t.csv", HEAD + "1,x\n2,\n"), {}, "line 3: the label 'kind' is empty"),
    "no number": (lambda p: write(p / "t.csv"), {"categorical": []}, "which is not a number: write a number"),
    "word": (lambda p: write(p / "t.csv"), {"split": "colour"}, "line 2: 'colour' holds"),
    "all bad": (lambda p: text(p / "t.csv", HEAD + "?,x\n"), {"on_bad_sample": "skip"}, "every row has a missing"),
    "categorical": (lambda p: write(p / "t.csv"), {"categorical": ["c"]}, "no column 'c' (categorical)"),
    "delimiter": (lambda p: write(p / "t.csv"), {"delimiter": ", "}, "delimiter must be one character"),
    "parquet": (lambda p: text(p / "t.parquet", "nothing"), {}, "cannot be read as a parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, name):
    make, options, words = BAD[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        table(make(tmp_path), **options).opened()
    assert words in str(caught.value)


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"install the extra, pip install 'metatransfer\[tables\]'"):
        table(text(tmp_path / "t.parquet", "x")).opened()


def test_nested_columns_of_parquet(tmp_path):
    parquet.write_table(pa.table({"kind": ["x", "y"], "a": [[1, 2], [3]]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column 'a' holds a list"):
        table(str(tmp_path / "t.parquet")).opened()


def test_class_names_in_two_unicode_forms_are_one_sentence(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n" + "".join(f"{i},{name}\n" for i, name in enumerate(["e\u0301", "\u00e9"] * 3)), "utf-8")
    with pytest.raises(UserError, match=r"line 3: .* the same text in another Unicode form: write both"):
        Table(str(path)).opened()


def test_decimal_commas_of_semicolon_files_are_one_sentence(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa;label\n" + "".join(f"{i},5;{'xy'[i % 2]}\n" for i in range(8)), "utf-8")
    with pytest.raises(UserError, match=r"column 'a' holds '0,5' and 7 other texts that begin like numbers: .* 5\.13"):
        Table(str(path)).opened()
