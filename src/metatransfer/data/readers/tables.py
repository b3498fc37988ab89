"""Reads CSV, TSV, JSON lines and parquet files; errors name the line."""

import contextlib
import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_file, did_you_mean
from metatransfer.data.sources import SPLITS, split_of
from metatransfer.errors import UserError, explained

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (*DELIMITERS, *JSON_LINES, ".parquet")
# missing values; the second line may also be names of classes
_NO_NAMES = frozenset(["#n/a", "#na", "<na>", "n/a", "n.a.", "na", "nan", "-nan", "nat", "null"])
MISSING = _NO_NAMES | frozenset(["", "-", "--", ".", "?", "–", "—", "nil", "none"])
_LONGEST = 200  # characters of a class name
_Row = tuple[int, Sequence[Any]]
_Columns = tuple[list[str], Sequence[Sequence[Any]], Sequence[int]]  # names, cells, lines


@dataclass(frozen=True)
class Table:
    """The cells of a file by column.

    Args:
        path: the file.
        columns: the cells of each column: stripped texts, numbers, or ``None`` for null.
        lines: the line on which each row begins, counted from 1.
        unit: what ``lines`` counts: ``"line"``, or ``"row"`` for parquet files.
    """

    path: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, row: int) -> str:
        """The name of a row in messages."""
        return f"'{self.path}', {self.unit} {self.lines[row]}"

    def column(self, name: str, argument: str) -> Sequence[Any]:
        """The cells of a column; ``argument`` is what the user named it with."""
        if name in self.columns:
            return self.columns[name]
        names = list(self.columns)
        shown = ", ".join(one if len(one) <= 30 else f"{one[:27]}..." for one in names[:12])
        raise UserError(
            f"'{self.path}' has no column '{name}' ({argument}), only {shown}{', ...' * (len(names) > 12)}: name "
            f"another, or add a first row with the names of the columns{did_you_mean(name, names)}"
        )

    def words(self, name: str, argument: str) -> list[str]:
        """A column as text; null becomes the empty text."""
        cells = self.column(name, argument)
        for row, cell in enumerate(cells):
            if isinstance(cell, list | dict | bytes):
                raise UserError(
                    f"{self.at(row)}: column '{name}' holds a {type(cell).__name__}, but must hold numbers or texts."
                )
        return ["" if cell is None else cell if isinstance(cell, str) else str(cell).strip() for cell in cells]

    def filled(self, name: str, argument: str, kinds: tuple[type, ...] = (str, int)) -> list[str]:
        """A column as text, without empty cells."""
        cells = self.column(name, argument)
        for row, cell in enumerate(cells):
            if cell is None or cell == "":
                raise UserError(f"{self.at(row)}: the {argument} '{name}' is empty: fill it in, or remove the row.")
            if not isinstance(cell, kinds):
                wanted = "a text" if kinds == (str,) else "a word or a whole number"
                raise UserError(
                    f"{self.at(row)}: {argument} '{name}' must be {wanted}, but is a {type(cell).__name__}: fix it."
                )
        return [str(cell) for cell in cells]

    def labels(self, name: str, argument: str = "label") -> list[str]:
        """A column of classes as text, see :func:`check_classes`."""
        words = self.filled(name, argument)
        check_classes(words, lambda row: f"{self.at(row)}: the {argument} '{name}'")
        return words

    def rows(self, split: str | None) -> dict[str, NDArray[np.int64]]:
        """The rows of each split by a column, or ``"all"`` without one."""
        if split is None:
            return {"all": np.arange(len(self))}
        return rows_of_splits(self.filled(split, "split"), split, f"'{self.path}'", self.at)


def check_classes(words: Sequence[str], at: Callable[[int], str]) -> None:
    """Raises an error if a class name is a missing value, not usable as a name, or spelt in a second way."""
    spelt: dict[str | float, str] = {}
    for word in dict.fromkeys(words):
        value = _value(unicodedata.normalize("NFC", word))
        other = spelt.setdefault(value, word)
        if word.lower() in _NO_NAMES:
            problem = f"is '{word}', a missing value: fill it in, remove the sample or rename the class"
        elif not word:
            problem = "is empty: fill it in, or remove the sample"
        elif len(word) > _LONGEST:
            problem = f"has {len(word)} characters, and class names at most {_LONGEST}: choose other labels"
        elif other != word:
            same = "text in another Unicode form" if isinstance(value, str) else "number"
            problem = f"is '{word}', but elsewhere '{other}', the same {same}: write both in the same way"
        elif not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            problem = f"is {word!a}, which is not valid Unicode: rename it"
        else:
            continue
        raise UserError(f"{at(words.index(word))} {problem}.")


def rows_of_splits(
    words: Sequence[str], column: str, where: str, at: Callable[[int], str]
) -> dict[str, NDArray[np.int64]]:
    """The rows of each split, from the word of each row; ``at`` names a row in messages."""
    found = {word: split_of(word) for word in dict.fromkeys(words)}
    for word, split in found.items():
        if split is None:
            known = ", ".join(SPLITS)
            raise UserError(f"{at(words.index(word))}: '{column}' holds '{word[:30]}', but must hold one of {known}.")
    if "train" not in found.values():
        there = ", ".join(split for split in SPLITS if split in found.values())
        raise UserError(f"{where} has no rows for train in '{column}', only for {there}: add some.")
    splits = np.array([found[word] for word in words], dtype=np.str_)
    return {split: np.flatnonzero(splits == split) for split in SPLITS if split in found.values()}


def read_table(
    path: str, delimiter: str | None = None, quotes: bool = True, wanted: Sequence[str] | None = None
) -> Table:
    """Reads a table; of a parquet file only the ``wanted`` columns."""
    file = check_file(Path(path).expanduser(), "table", "put it there, or give the path of yours")
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        names, columns, lines = _parquet(file, wanted)
    elif suffix in JSON_LINES:
        names, columns, lines = _by_column(*_json_lines(file))
    elif suffix in DELIMITERS or delimiter is not None:
        names, columns, lines = _by_column(*_delimited(file, delimiter or _delimiter(file, suffix), quotes))
    else:
        raise UserError(
            f"table '{path}' must end in {', '.join(TABLE_SUFFIXES)}, but ends in '{suffix or file.name}': convert it, "
            "or set delimiter for a table with another ending."
        )
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise UserError(f"'{file}' has two columns called '{name}': rename one.")
    if not lines:
        raise UserError(f"'{file}' has no rows below the names of its columns: add some.")
    return Table(str(path), dict(zip(names, columns, strict=True)), lines, "row" if suffix == ".parquet" else "line")


def read_lines(path: str, column: str) -> Table:
    """Reads a plain text file with one text in each line."""
    file = check_file(Path(path).expanduser(), "text file", "put it there, or give the path of yours")
    rows = list(_lines(file))
    return Table(str(path), {column: [content for _, content in rows]}, [line for line, _ in rows])


def _by_column(names: list[str], rows: Sequence[_Row]) -> _Columns:
    columns = [list(map(_cell, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return names, columns, [line for line, _ in rows]


def _cell(value: Any) -> Any:  # noqa: ANN401
    """A text without space around it; a whole number as int, so that it is spelt as in a CSV file; NaN as ``None``."""
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value.strip() if isinstance(value, str) else value


def _value(word: str) -> str | float:
    """The number that a word spells, otherwise the word."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def _content(file: Path) -> str:
    data = file.read_bytes()
    if not data.strip():
        raise UserError(f"'{file}' is empty: the first row must name the columns, and others must follow.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"'{file}', line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text: save the file as UTF-8."
        ) from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    # not splitlines(), which also splits at characters that occur inside texts
    numbered = enumerate(map(str.strip, _content(file).split("\n")), start=1)
    return ((line, content) for line, content in numbered if content)


def _json_lines(file: Path) -> tuple[list[str], list[_Row]]:
    objects = [(line, _json(content, f"'{file}', line {line}")) for line, content in _lines(file)]
    names = list(objects[0][1])
    return names, [(line, [one.get(name) for name in names]) for line, one in objects]


def _json(content: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
        if "\\ud" in content.lower():  # perhaps half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(getattr(error, "msg", None) or getattr(error, "reason", error)).lower()
        raise UserError(f"{where}: this is not JSON ({reason}): fix the line.") from error
    if not isinstance(value, dict):
        raise UserError(
            f'{where}: every line must be an object, {{"text": ..., "label": ...}}, but this is a '
            f"{type(value).__name__}: write one object per line."
        )
    return value


def _delimiter(file: Path, suffix: str) -> str:
    """The usual one of the file's extension, unless the first row has others only, as in many semicolon files."""
    first = _content(file).lstrip("\r\n").partition("\n")[0]
    found = [one for one in ",;\t|" if one in first]
    return found[0] if len(found) == 1 else DELIMITERS[suffix]


def _delimited(file: Path, delimiter: str, quotes: bool) -> tuple[list[str], list[_Row]]:
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"delimiter must be one character other than a quote or a line end, but is {delimiter!r}.")
    rows = _fields(file, delimiter, quotes)
    if not rows:
        raise UserError(f"'{file}' is empty: the first row must name the columns.")
    (_, names), *others = rows
    for line, row in others:
        if len(row) != len(names):
            raise UserError(
                f"'{file}', line {line} has {len(row)} fields, but there are {len(names)} columns: fix the row, and "
                "put quotes around fields that contain the delimiter."
            )
    return [name.strip() for name in names], others


def _fields(file: Path, delimiter: str, quotes: bool) -> list[_Row]:
    """The rows that are not blank, with the line on which each begins."""
    quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(_content(file), newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    rows: list[_Row] = []
    begin = 1
    limit = csv.field_size_limit(2**31 - 1)  # otherwise 131072 characters; the limit is global
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append((begin, row))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{file}', line {begin}: a quote of this row is not closed at the end of its field ({error}): close it, "
            "double the quotes inside a quoted field, or set quotes=False if they are ordinary characters."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _parquet(file: Path, wanted: Sequence[str] | None) -> _Columns:
    extra = "install the extra, pip install 'metatransfer[tables]'"
    with explained(f"'{file}' needs pyarrow", extra, ImportError, quoted=False):
        import pyarrow
        from pyarrow import parquet
    kinds = pyarrow.ArrowException, OSError, ValueError
    with explained(f"'{file}' cannot be read as a parquet file", "save it again", *kinds):
        names = [str(name) for name in parquet.read_schema(file).names]
        keep = set(names) if wanted is None else {*wanted}
        content = parquet.read_table(file, columns=None if wanted is None else [n for n in names if n in keep])
        # Python has no times in nanoseconds
        read = (one.cast("string") if pyarrow.types.is_temporal(one.type) else one for one in content.columns)
        columns = [[_cell(one) for one in next(read).to_pylist()] if name in keep else () for name in names]
    return names, columns, range(1, content.num_rows + 1)
