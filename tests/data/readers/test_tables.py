"""Tables from files: every form holds the same, and every mistake names its line."""

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from metatransfer import UserError
from metatransfer.data.readers.tables import read_lines, read_table

ROWS = [
    ("Where is my card?", "card", "train"),
    ('He said "no",\nand left — ünïcödé', "talk", "val"),
    ("line\u2028separator, NA", "none", "test"),
]
COLUMNS = ["id", "text", "label", "part"]


def write(path, rows=ROWS, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(COLUMNS)
        writer.writerows([number, *row] for number, row in enumerate(rows))
    return str(path)


def json_lines(path):
    objects = [dict(zip(COLUMNS, (number, *row), strict=True)) for number, row in enumerate(ROWS)]
    path.write_text("\n\n".join(json.dumps(one, ensure_ascii=False) for one in objects) + "\n", encoding="utf-8")
    return str(path)


def columns(path):
    texts, labels, parts = zip(*ROWS, strict=True)
    parquet.write_table(pa.table({"id": [0, 1, 2], "text": texts, "label": labels, "part": parts}), path)
    return str(path)


FORMS = {
    "csv": (lambda p: write(p / "t.csv"), {}, [2, 3, 5]),
    "tsv": (lambda p: write(p / "t.tsv", delimiter="\t"), {}, [2, 3, 5]),
    "other": (lambda p: write(p / "t.data", delimiter=";"), {"delimiter": ";"}, [2, 3, 5]),
    "semicolons": (lambda p: write(p / "t.csv", delimiter=";"), {}, [2, 3, 5]),
    "tabs": (lambda p: write(p / "t.csv", delimiter="\t"), {}, [2, 3, 5]),
    "commas": (lambda p: write(p / "t.txt"), {}, [2, 3, 5]),
    "json lines": (lambda p: json_lines(p / "t.jsonl"), {}, [1, 3, 5]),
    "parquet": (lambda p: columns(p / "t.parquet"), {}, [1, 2, 3]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same(tmp_path, name):
    make, options, lines = FORMS[name]
    table = read_table(make(tmp_path), **options)
    assert list(table.columns) == COLUMNS
    assert list(zip(*(table.filled(column, column) for column in COLUMNS[1:]), strict=True)) == ROWS
    assert table.words("id", "features") == ["0", "1", "2"]
    assert list(table.lines) == lines
    assert table.at(2).endswith(f"{'row' if name == 'parquet' else 'line'} {lines[2]}")
    some = read_table(make(tmp_path), wanted=["label"], **options)
    assert some.filled("label", "label") == ["card", "talk", "none"]


def test_long_fields_and_many_columns(tmp_path):
    """A cell of any length is read and costs nothing in other rows; many columns take no longer each."""
    long, count = "x" * 300_000, 5000
    before = csv.field_size_limit()
    path = put(tmp_path / "t.csv", f'text,label\n"{long}",a\n' + "b,c\n" * 20)
    table = read_table(path)
    assert table.filled("text", "text") == [long] + ["b"] * 20
    assert csv.field_size_limit() == before
    names = [f"c{number}" for number in range(count)]
    table = read_table(put(tmp_path / "w.csv", ",".join(names) + "\n" + ",".join("1" * count) + "\n"))
    assert list(table.columns) == names
    assert table.words("c77", "features") == ["1"]


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_byte_order_mark_line_ends_and_space_do_not_matter(tmp_path):
    path = put(tmp_path / "t.csv", b"\xef\xbb\xbftext,label\r\n\r\n  a b ,  x \r\n , \r\nc,y")
    table = read_table(path)
    assert (table.words("text", "text"), table.words("label", "label"), table.lines) == (
        ["a b", "c"],
        ["x", "y"],
        [3, 5],
    )


def test_plain_lines_and_plain_quotes(tmp_path):
    table = read_lines(put(tmp_path / "t.txt", "one text\n\nanother, text\n"), "whatever")
    assert (table.columns, table.lines) == ({"whatever": ["one text", "another, text"]}, [1, 3])
    path = put(tmp_path / "t.tsv", 'text\tlabel\n"open\tx\nsaid "so"\ty\n')
    assert read_table(path, quotes=False).words("text", "text") == ['"open', 'said "so"']


def test_labels_may_be_whole_numbers(tmp_path):
    table = read_table(put(tmp_path / "t.jsonl", '{"text": "a", "label": 10}\n{"text": "b", "label": 0}'))
    assert table.filled("label", "label") == ["10", "0"]


def test_whole_numbers_of_any_type_are_one_class(tmp_path):
    """pandas stores whole numbers beside a missing value as floats."""
    parquet.write_table(pa.table({"label": [1.0, 2.0, 1.0]}), tmp_path / "t.parquet")
    assert read_table(str(tmp_path / "t.parquet")).labels("label") == ["1", "2", "1"]
    table = read_table(put(tmp_path / "t.jsonl", '{"text": "a", "label": 10.0}\n{"text": "b", "label": 10}'))
    assert table.labels("label") == ["10", "10"]
    table = read_table(put(tmp_path / "t.csv", "label\n1\nnone\n12345678901234567\n12345678901234568\n"))
    assert table.labels("label") == ["1", "none", "12345678901234567", "12345678901234568"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["1", "2", "1.0"], "line 4: the label 'label' is '1.0', but elsewhere '1', the same number: write both"),
        (["7", "07"], "is '07', but elsewhere '7'"),
        (["a", "nan"], "line 3: the label 'label' is 'nan', a missing value: fill it in, remove"),
        (["a", "#N/A"], "is '#N/A', a missing value"),
        (["a", "x" * 140_000], "line 3: the label 'label' has 140000 characters"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, words):
    table = read_table(put(tmp_path / "t.csv", "text,label\n" + "".join(f"t,{label}\n" for label in labels)))
    with pytest.raises(UserError, match=r"^[^\n]{,400}$") as caught:
        table.labels("label")
    assert words in str(caught.value)


HEAD = "text,label\n"
LONG = ",".join(["a long first row that is no row of names", *"0123456789", "x", "y"])
BAD = {
    "missing": ("t.csv", None, "does not exist"),
    "ending": ("t.xlsx", "x", "must end in .csv, .tsv, .tab, .txt, .jsonl, .ndjson, .parquet, but ends in '.xlsx'"),
    "empty": ("t.csv", " \n", "is empty: the first row must name the columns"),
    "empty lines": ("t.jsonl", "\n", "is empty"),
    "no names at all": ("t.csv", " ,\n,\n", "is empty: the first row must name the columns"),
    "no rows": ("t.csv", HEAD, "has no rows below the names of its columns"),
    "column": ("t.csv", "txt,label\na,x\n", "no column 'text' (text), only txt, label: name another, or"),
    "near": ("t.csv", "text,lable\na,x\n", "no column 'label' (label), only text, lable"),
    "mean": ("t.csv", "text,lable\na,x\n", "Did you mean lable?"),
    "no names": ("t.csv", LONG + "\n", "has no rows below"),
    "double": ("t.csv", "text,label,text\na,x,b\n", "two columns called 'text'"),
    "label": (
        "t.csv",
        HEAD + 'a,x\n"b\nc",y\nd,\n',
        "line 5: the label 'label' is empty: fill it in, or remove the row",
    ),
    "null": ("t.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', "line 2: the label 'label' is empty"),
    "text": ("t.csv", HEAD + "a,x\n\n ,y\n", "line 4: the text 'text' is empty"),
    "utf-8": (
        "t.csv",
        HEAD.encode() + b"a,x\n\nb\xff,y\n",
        "line 4: byte 0xff is not UTF-8 text: save the file as UTF-8",
    ),
    "utf-16": ("t.csv", HEAD.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "json utf-8": ("t.jsonl", b'{"text": "a"}\n\xe4', "line 2: byte 0xe4"),
    "open": ("t.csv", HEAD + 'a,x\n"b\nc",y\n"d ""e""\nf,z\n', "line 5: a quote of this row is not closed"),
    "second": ("t.csv", HEAD + '"b\nc ""d""","e\nf\ng', "line 2: a quote of this row"),
    "inside": ("t.csv", HEAD + 'a,x\n"b" c,y\n', "line 3: a quote of this row is not closed at the end"),
    "stray": ("t.csv", HEAD + '"a,x\nb,y\n"c",z\n', "line 2: a quote of this row"),
    "long": ("t.csv", HEAD + "a,x\nb, c,y\n", "line 3 has 3 fields, but there are 2 columns"),
    "json": ("t.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", label}\n', "line 2: this is not JSON (expecting"),
    "surrogate": ("t.jsonl", '{"text": "a", "label": "\\ud800"}', "this is not JSON (surrogates not allowed): fix"),
    "digits": ("t.jsonl", '{"text": "a", "label": ' + "1" * 9999 + "}", "line 1: this is not JSON (exceeds the limit"),
    "nul": ("t\0.csv", None, "does not exist"),
    "array": ("t.jsonl", '[{"text": "a"}]', "line 1: every line must be an object"),
    "number": ("t.jsonl", '{"text": 3, "label": "x"}', "line 1: text 'text' must be a text, but is a int"),
    "list": (
        "t.jsonl",
        '{"text": "a", "label": ["x"]}',
        "label 'label' must be a word or a whole number, but is a list",
    ),
    "parquet": ("t.parquet", "nothing", "cannot be read as a parquet file"),
}


def read(path):
    table = read_table(path)
    return table.filled("text", "text", (str,)), table.filled("label", "label")


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, name):
    file, content, words = BAD[name]
    path = str(tmp_path / file) if content is None else put(tmp_path / file, content)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        read(path)
    assert words in str(caught.value), str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize("delimiter", [", ", '"', "\n"])
def test_delimiters(tmp_path, delimiter):
    with pytest.raises(UserError, match="delimiter must be one character"):
        read_table(write(tmp_path / "t.csv"), delimiter)


def test_parquet_columns_and_rows(tmp_path):
    path = str(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"text": ["a", "b"], "label": ["x", None], "other": [[1], [2]]}), path)
    table = read_table(path)
    with pytest.raises(UserError, match="row 2: the label 'label' is empty"):
        table.filled("label", "label")
    with pytest.raises(UserError, match=r"no column 'kind' \(label\), only text, label, other"):
        table.filled("kind", "label")
    with pytest.raises(UserError, match="must be a text, but is a list"):
        table.filled("other", "text", (str,))
    with pytest.raises(UserError, match="row 1: column 'other' holds a list, but must hold numbers or texts"):
        table.words("other", "features")
    assert read_table(path, wanted=["text"]).words("text", "text") == ["a", "b"]


def test_parquet_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"install the extra, pip install 'metatransfer\[tables\]'"):
        read_table(put(tmp_path / "t.parquet", "x"))
