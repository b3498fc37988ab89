"""Tables as episodes: the encoding against numpy, the division of rows, and the line of every mistake."""

import csv

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from conftest import ROOT, results
from metatransfer import TableEpisodes, UserError

SHAPE = {"num_ways": 2, "num_queries": 1, "train_episodes": 4, "val_episodes": 2, "test_episodes": 2}
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
    return TableEpisodes(path, **{"label": "kind", **SHAPE, **options})


def samples(data, split):
    source = data.open(split).source
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


def test_classes_are_divided_at_random_without_a_column(tmp_path):
    path = write(tmp_path / "t.csv")
    options = {"features": ["a", "b"], "split_seed": 3}
    names = {split: samples(table(path, **options), split)[1].class_names for split in ("train", "val", "test")}
    assert sorted(sum(names.values(), ())) == sorted(set(KINDS))
    assert names == {s: samples(table(path, **options), s)[1].class_names for s in ("train", "val", "test")}
    assert table(path).protocol()["split"].startswith("classes at random, seed 0")


def test_unseen_categories_are_zeros_and_constant_columns_too(tmp_path):
    rows = [{**row, "colour": "purple" if row["part"] == "test" else "red", "b": 7.1} for row in ROWS]
    data = table(write(tmp_path / "t.csv", rows), split="part")
    x, _ = samples(data, "test")
    assert (x[:, 1:] == 0).all()
    assert (samples(data, "train")[0][:, 2] == 1).all()


def test_numbers_can_be_categories(tmp_path):
    rows = [{**row, "b": index % 3} for index, row in enumerate(ROWS)]
    path = write(tmp_path / "t.csv", rows)
    assert samples(table(path, features=["a", "b"]), "train")[0].shape[1] == 2
    assert samples(table(path, features=["a", "b"], categorical=["b"]), "train")[0].shape[1] == 4


def test_groups(tmp_path):
    rows = [{**row, "family": "odd" if int(row["kind"][1]) % 2 else "even"} for row in ROWS]
    data = table(write(tmp_path / "t.csv", rows), split="part", group="family", group_by=True, features=["a"])
    drawn = data.open("train")(np.arange(40))
    family = np.array([int(name[1]) % 2 for name in data.samplers["train"].source.class_names])
    assert (family[drawn.classes[:, 0]] == family[drawn.classes[:, 1]]).all()


@pytest.mark.parametrize("value", ["", "NA", "nan", "inf", "-inf", "NULL"])
def test_missing_values_are_named_or_counted(tmp_path, value):
    rows = [dict(row) for row in ROWS]
    rows[5]["b"] = value
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match=r"line 7: column 'b' (holds|is empty).*on_bad_sample=skip"):
        table(path, split="part").setup()
    data = table(path, split="part", on_bad_sample="skip")
    data.setup()
    assert data.skipped == {"train": 1, "val": 0, "test": 0}
    assert len(data.samplers["train"].source) == 15


def test_through_the_command_a_method_learns(cli, tmp_path):
    generator = np.random.default_rng(0)
    centres, odd = generator.normal(size=(40, 5)), np.array(["even", "odd"])
    rows = [
        {"kind": f"class {kind}", "parity": odd[kind % 2]}
        | {f"f{i}": value for i, value in enumerate(centres[kind] + 0.2 * generator.normal(size=5))}
        for kind in range(40)
        for _ in range(10)
    ]
    run = cli(
        "fit", ROOT / "configs" / "protonet.yaml", "--model.backbone", "MLP", "--data", "TableEpisodes",
        "--data.path", write(tmp_path / "t.csv", rows), "--data.label=kind", "--data.num_ways=5",
    )  # fmt: skip
    assert results(run)["metrics"]["accuracy"]["value"] > 0.8
    assert "1-NN" in results(run)["baselines"]


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
    "quote": (lambda p: text(p / "t.csv", HEAD + '1,x\n2,"y\n3,z\n'), {}, "the row from line 3 on"),
    "long": (lambda p: text(p / "t.csv", HEAD + "1,x\n\n2,y,z\n"), {}, "line 4: 3 fields, but there are 2 columns"),
    "short": (lambda p: text(p / "t.csv", HEAD + "1\n"), {}, "line 2: 1 fields"),
    "utf-8": (lambda p: text(p / "t.csv", HEAD.encode() + b"1,\xff\n"), {}, "is no UTF-8 text"),
    "double": (lambda p: text(p / "t.csv", "a,kind,a\n1,x,2\n"), {}, "two columns called 'a'"),
    "label": (lambda p: write(p / "t.csv"), {"label": "kid"}, "Did you mean kind?"),
    "feature": (lambda p: write(p / "t.csv"), {"features": ["a", "bb"]}, "no column 'bb' (features), only a, kind"),
    "leak": (lambda p: write(p / "t.csv"), {"features": ["a", "kind"]}, "would give the answer away"),
    "only label": (lambda p: text(p / "t.csv", "kind\nx\ny\n"), {}, "has no column but the label"),
    "no label": (lambda p: text(p / "t.csv", HEAD + "1,x\n2,\n"), {}, "line 3: the label 'kind' is empty"),
    "no number": (lambda p: write(p / "t.csv"), {"categorical": []}, "which is no number: mend it, or name the column"),
    "word": (lambda p: write(p / "t.csv"), {"split": "colour"}, "line 2: column 'colour' holds"),
    "shared": (lambda p: write(p / "t.csv"), {"split": "part", "label": "colour"}, "must have different classes"),
    "few": (lambda p: write(p / "t.csv"), {"num_ways": 5}, "8 classes, but three splits need 5 + 5 + 5"),
    "samples": (lambda p: write(p / "t.csv"), {"num_queries": 9}, "has 4 samples, but 1 shots + 9 queries"),
    "delimiter": (lambda p: write(p / "t.csv"), {"delimiter": ", "}, "delimiter must be one character"),
    "parquet": (lambda p: text(p / "t.parquet", "nothing"), {}, "cannot be read as a parquet file"),
    "fractions": (lambda p: write(p / "t.csv"), {"val_fraction": 0.6, "test_fraction": 0.4}, "must be below 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, name):
    make, options, words = BAD[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        table(make(tmp_path), **options).setup()
    assert words in str(caught.value)


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"install the extra, pip install 'metatransfer\[tables\]'"):
        table(text(tmp_path / "t.parquet", "x")).setup()


def test_nested_columns_of_parquet(tmp_path):
    parquet.write_table(pa.table({"kind": ["x", "y"], "a": [[1, 2], [3]]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column 'a' is of type list"):
        table(str(tmp_path / "t.parquet")).setup()
