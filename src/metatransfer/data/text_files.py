"""Texts with their labels from CSV, TSV, JSON lines and parquet files, every mistake with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from metatransfer.checks import check_file, did_you_mean
from metatransfer.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_KNOWN = (*_DELIMITERS, *_JSON_LINES, ".parquet")
_Row = tuple[int, Sequence[Any]]


class TextRows(NamedTuple):
    """The rows of a file.

    Attributes:
        texts: one for each row, never empty.
        labels: one for each, never empty; none at all where no column was asked for.
        splits: what the column of the splits holds, as ``labels``.
        lines: where each row stands in the file, from 1 on.
        unit: what is counted, ``"line"``, or ``"row"`` of a parquet file.
    """

    texts: list[str]
    labels: list[str]
    splits: list[str]
    lines: list[int]
    unit: str

    def at(self, places: Sequence[int]) -> TextRows:
        """Some of the rows.

        Args:
            places: which, from 0 on.

        Returns:
            Those, in the order of ``places``.
        """
        labels, splits = ([part[place] for place in places] if part else [] for part in (self.labels, self.splits))
        texts, lines = [self.texts[place] for place in places], [self.lines[place] for place in places]
        return TextRows(texts, labels, splits, lines, self.unit)


def read_texts(
    path: str,
    text: str,
    label: str | None = None,
    split: str | None = None,
    *,
    delimiter: str | None = None,
    quotes: bool = True,
) -> TextRows:
    r"""Reads texts, and where asked for their labels and splits.

    Args:
        path: ``.csv``, ``.tsv`` or ``.tab`` with a first row of names, ``.jsonl`` or ``.ndjson`` with an object in each
            line, ``.parquet`` (extra ``tables``); without labels also ``.txt``, a text in each line.
        text: column of the texts.
        label: column of the classes.
        split: column of the splits.
        delimiter: between fields of a row; a comma, in ``.tsv`` and ``.tab`` a tab.
        quotes: whether ``"`` encloses fields; ``False`` takes it for a letter.

    Returns:
        The rows; blank lines are none. Space around texts and labels is left out.

    Raises:
        UserError: with the line and what to mend.
    """
    file = check_file(path, "text file", "put it there, or give the path of yours")
    suffix = file.suffix.lower()
    wanted = {
        name: column for name, column in (("text", text), ("label", label), ("split", split)) if column is not None
    }
    if suffix == ".parquet":
        columns, rows = _parquet(file, list(wanted.values()))
    elif suffix in _JSON_LINES:
        columns, rows = _json_lines(file)
    elif suffix == ".txt" and label is None and split is None and delimiter is None:
        columns, rows = [text], ((line, [content]) for line, content in _lines(file) if content.strip())
    elif suffix in _DELIMITERS or delimiter is not None:
        columns, rows = _delimited(file, delimiter or _DELIMITERS[suffix], quotes)
    else:
        raise UserError(
            f"text file '{path}' must end in {', '.join(_KNOWN)}, but ends in '{suffix or file.name}': convert it, or "
            "for a table of another ending say the delimiter."
        )
    places = {name: _place(column, name, columns, file) for name, column in wanted.items()}
    unit = "row" if suffix == ".parquet" else "line"
    found: dict[str, list[str]] = {"text": [], "label": [], "split": []}
    lines: list[int] = []
    for line, cells in rows:
        lines.append(line)
        for name, place in places.items():
            found[name].append(_value(cells[place], f"'{file}', {unit} {line}", name, wanted[name]))
    if not lines:
        raise UserError(f"'{file}' has no texts, only {'its columns' if columns else 'nothing'}: add some rows.")
    return TextRows(found["text"], found["label"], found["split"], lines, unit)


def _place(column: str, argument: str, columns: list[str], file: Path) -> int:
    if column in columns:
        return columns.index(column)
    shown = ", ".join(f"'{name if len(name) <= 30 else name[:27] + '...'}'" for name in columns[:12])
    more = ", ..." if len(columns) > 12 else ""
    raise UserError(
        f"'{file}' has no column '{column}' ({argument}), only {shown}{more}: name another, or "
        f"add a first row with the names of the columns{did_you_mean(column, columns)}"
    )


def _value(value: Any, where: str, argument: str, column: str) -> str:  # noqa: ANN401
    """A cell as a word.

    Raises:
        UserError: it is empty or null, or no text; of a label, no word or number.
    """
    kinds = (str,) if argument == "text" else (str, int)  # a label of 1.0 would be another than one of 1
    if value is not None and not isinstance(value, kinds):
        wanted = "a text" if argument == "text" else "a word or a whole number"
        raise UserError(f"{where}: {argument} '{column}' must be {wanted}, but is a {type(value).__name__}: mend it.")
    word = str(value).strip() if value is not None else ""
    if not word:
        raise UserError(f"{where}: the {argument} '{column}' is empty: fill it in, or remove the row.")
    return word


def _content(file: Path) -> str:
    """The file as text.

    Raises:
        UserError: nothing in it, or no UTF-8, with the line.
    """
    data = file.read_bytes()
    if not data.strip():
        raise UserError(f"'{file}' is empty: it must hold texts.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"'{file}', line {line}: byte 0x{data[error.start]:02x} is no UTF-8 text: save the file as UTF-8."
        ) from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # by line feeds alone: splitlines() would cut at other characters, which stand inside of texts
    return enumerate(_content(file).split("\n"), start=1)


def _json_lines(file: Path) -> tuple[list[str], Iterator[_Row]]:
    """The names in the first object, and the rows.

    Raises:
        UserError: a line that is no object.
    """
    objects = [(line, _json(content, file, line)) for line, content in _lines(file) if content.strip()]
    columns = list(objects[0][1])
    return columns, ((line, [one.get(name) for name in columns]) for line, one in objects)


def _json(content: str, file: Path, line: int) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = (
            f"{error.msg.lower()} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        )
        raise UserError(f"'{file}', line {line}: this is no JSON ({reason}): mend the line.") from error
    if not isinstance(value, dict):
        raise UserError(
            f'\'{file}\', line {line}: every line must be an object, {{"text": ..., "label": ...}}, but this is a '
            f"{type(value).__name__}: write one object a line."
        )
    return value


def _delimited(file: Path, delimiter: str, quotes: bool) -> tuple[list[str], Iterator[_Row]]:
    """The names in the first row, and the rows.

    Raises:
        UserError: an empty file, two columns of one name, or a delimiter of more than one character.
    """
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"delimiter must be one character, no quote and no line end, but is '{delimiter}'.")
    rows = _fields(_content(file), delimiter, quotes, file)
    columns = [str(name).strip() for name in next(rows, (0, ()))[1]]
    if not columns:
        raise UserError(f"'{file}' is empty: the first row must name the columns.")
    double = sorted(name for name in set(columns) if columns.count(name) > 1 and name)
    if double:
        raise UserError(f"'{file}' has two columns called '{double[0]}': rename one.")
    return columns, _checked(rows, len(columns), file)


def _checked(rows: Iterator[_Row], count: int, file: Path) -> Iterator[_Row]:
    for line, row in rows:
        if len(row) != count:
            raise UserError(
                f"'{file}', line {line}: {len(row)} fields, but there are {count} columns: mend the row, and put "
                "quotes around fields that hold the delimiter."
            )
        yield line, row


def _fields(content: str, delimiter: str, quotes: bool, file: Path) -> Iterator[_Row]:
    """Rows with the line they begin on.

    Yields:
        A row that is not blank.

    Raises:
        UserError: a quote that is never closed, or not at the end of its field; with the line where it opens.
    """
    seen: list[str] = []  # the lines of this row, to find the quote in

    def watched() -> Iterator[str]:
        for line in io.StringIO(content, newline=""):
            seen.append(line)
            yield line

    rows = csv.reader(
        watched(), delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    )
    begin = 1
    try:
        for row in rows:
            if any(field.strip() for field in row):
                yield begin, list(row)
            begin += len(seen)
            seen.clear()
    except csv.Error as error:
        line = begin + _opening(seen, delimiter)
        raise UserError(
            f"'{file}', line {line}: the quote that opens here is not closed at the end of its field ({error}): close "
            "it, write quotes inside of a quoted field twice, or set quotes=False where they are plain characters."
        ) from error


def _opening(lines: list[str], delimiter: str) -> int:
    """On which of the lines of a row the last quoted field opens."""
    inside, closed, start, opening = False, False, True, 0
    for number, line in enumerate(lines):
        for letter in line:
            if letter != '"':
                closed, start = False, not inside and letter == delimiter
            elif inside:
                inside, closed = False, True
            elif start or closed:  # after a closing one it is the second of two, which stand for one
                opening = number if start else opening
                inside, closed, start = True, False, False
    return opening


def _parquet(file: Path, wanted: list[str]) -> tuple[list[str], Iterator[_Row]]:
    """The columns, and of those that are wanted the values.

    Raises:
        UserError: damaged, or the package is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"'{file}' needs pyarrow: install the extra, pip install 'metatransfer[tables]'.") from error
    try:
        names = [str(name) for name in parquet.read_schema(file).names]
        content = parquet.read_table(file, columns=[name for name in dict.fromkeys(wanted) if name in names])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{file}' cannot be read as a parquet file ({' '.join(str(error).split())[:120]}).") from error
    cells = [content.column(name).to_pylist() if name in content.column_names else repeat(None) for name in names]
    return names, enumerate(zip(*cells, strict=False), start=1)
