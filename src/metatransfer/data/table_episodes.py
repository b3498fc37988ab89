"""Episodes of tables: CSV, TSV and parquet files with a label column."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metatransfer.checks import check_choice, check_file, did_you_mean
from metatransfer.data.division import (
    SPLIT_NAMES,
    RandomDivision,
    classes_of_splits,
    group_of_classes,
    natural_order,
    split_of,
)
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images import ON_BAD_SAMPLE, OnBadSample
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


class Table(NamedTuple):
    """A file's cells as text.

    Attributes:
        columns: their names.
        cells: ``(rows, columns)``; missing ones are empty.
        lines: ``(rows,)`` where each row stands in the file, for messages.
    """

    columns: list[str]
    cells: NDArray[np.str_]
    lines: NDArray[np.int64]


class Encoding(NamedTuple):
    """How columns become numbers, from the training rows alone.

    Attributes:
        numeric: columns that are standardised.
        mean: of each.
        scale: 1 / standard deviation of each; 0 where it is constant.
        categories: the values of every categorical column, in order.
    """

    numeric: list[str]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    categories: dict[str, list[str]]


class TableEpisodes(EpisodicDataModule):
    r"""Rows of a CSV, TSV or parquet file, with a column of labels.

    A sample is a row: its numeric columns standardised, :math:`(x-\mu)/\sigma` with the mean and standard deviation of
    the **training** rows (a constant column is 0), followed by its categorical columns as one-hot vectors over the
    values of the training rows (a value that these do not have is all zeros). Rows are divided into splits by the
    column ``split``, or their classes at random by ``split_seed``. The remaining arguments are those of
    :class:`EpisodicDataModule`::

        lightning fit --config configs/protonet.yaml --model.backbone MLP --data TableEpisodes
            --data.path FILE.csv --data.label COLUMN --data.num_ways 5

    Args:
        path: ``.csv``, ``.tsv``, ``.tab``, ``.txt`` or ``.parquet`` (extra ``tables``), with named columns.
        label: column of the classes.
        features: columns that make a sample; where left out all but ``label``, ``split`` and ``group``.
        categorical: features that are categories; those that are not all numbers where left out.
        split: column with ``train``, ``val`` or ``test`` in each row.
        group: column with the group of each row, for ``group_by``; all rows of a class must have the same.
        delimiter: between fields; by the file's ending where left out.
        split_seed: which random division of the classes, where they come undivided.
        val_fraction: part of the classes for validation, where they come undivided.
        test_fraction: part of the classes for the test, where they come undivided.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out and count rows with a missing or infinite value.
        **episodes: arguments of :class:`EpisodicDataModule`.

    Attributes:
        skipped: rows left out, for each split that was opened.

    Raises:
        UserError: fractions that leave no training classes, or an unknown ``on_bad_sample``.
    """

    def __init__(
        self,
        path: str,
        label: str,
        features: list[str] | None = None,
        categorical: list[str] | None = None,
        split: str | None = None,
        group: str | None = None,
        delimiter: str | None = None,
        split_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        on_bad_sample: OnBadSample = "error",
        **episodes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**episodes)
        check_choice("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        self.path, self.label, self.features, self.categorical = path, label, features, categorical
        self.split_column, self.group_column, self.delimiter = split, group, delimiter
        self.division = RandomDivision(split_seed, val_fraction, test_fraction)
        self.on_bad_sample = on_bad_sample
        self.skipped: dict[str, int] = {}
        self._rows: _Rows | None = None

    @property
    def rows(self) -> _Rows:
        """The table, read when first asked for."""
        if self._rows is None:
            self._rows = _Rows(self)
        return self._rows

    def source(self, split: str) -> TensorSource:
        """The rows of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A source in memory, its classes named by their labels.

        Raises:
            UserError: a file that cannot be read, columns that do not exist, values that are missing, or no such split.
        """
        rows = self.rows
        members = rows.of_split(split)
        self.skipped[split] = int((rows.bad & (rows.splits == split)).sum())
        names = natural_order(rows.labels[members])
        position = {name: index for index, name in enumerate(names)}
        groups = None
        if self.group_column is not None:
            found = group_of_classes(rows.labels, rows.column(self.group_column), f"'{self.path}'")
            groups = [found[name] for name in names]
        return TensorSource(
            torch.from_numpy(rows.encode(members)),
            np.array([position[name] for name in rows.labels[members]]),
            names,
            f"'{self.path}' {split}",
            groups,
        )

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the way the classes were divided and the columns."""
        return super().protocol() | {
            "split": f"by column '{self.split_column}'" if self.split_column else str(self.division),
            "features": "numeric standardised and categories one-hot, by the training rows",
        }


class _Rows:
    """A table with its columns told apart, its splits and its encoding.

    Raises:
        UserError: as :meth:`TableEpisodes.source`.
    """

    def __init__(self, data: TableEpisodes) -> None:
        self.data, self.where = data, f"'{data.path}'"
        self.table = read_table(data.path, data.delimiter)
        self._check_columns()
        self.labels = self.column(data.label)
        self._check_filled(data.label)
        others = {data.label, data.split_column, data.group_column}
        self.features = data.features or [name for name in self.table.columns if name not in others]
        if not self.features:
            raise UserError(f"{self.where} has no column but the label: a sample needs at least one feature.")
        self.splits = self._splits()
        missing = np.stack([_is_missing(self.column(name)) for name in self.features], axis=1)
        named = set(data.categorical or ())
        automatic = data.categorical is None
        self.numbers = {
            name: numbers
            for name in self.features
            if name not in named and (numbers := _numbers(self.column(name), automatic)) is not None
        }
        for place, name in enumerate(self.features):
            if name in self.numbers:
                missing[:, place] |= ~np.isfinite(self.numbers[name])
        self._check_numeric(named, automatic)
        self.bad = missing.any(1)
        if self.bad.any() and data.on_bad_sample == "error":
            row = int(self.bad.argmax())
            name = self.features[int(missing[row].argmax())]
            value = str(self.column(name)[row])
            raise UserError(
                f"{self.where}, line {self.table.lines[row]}: column '{name}' "
                f"{f'holds {value!r}' if value else 'is empty'}: fill it in, or set on_bad_sample=skip to leave out "
                f"and count such rows, {int(self.bad.sum())} here."
            )
        self.encoding = self._encoding()

    def column(self, name: str) -> NDArray[np.str_]:
        return self.table.cells[:, self.table.columns.index(name)]

    def of_split(self, split: str) -> NDArray[np.int64]:
        members = np.flatnonzero((self.splits == split) & ~self.bad)
        if not len(members):
            there = sorted(set(self.splits[~self.bad].tolist()), key=SPLITS.index)
            raise UserError(f"{self.where} has no rows for {split}, only for {', '.join(there) or 'none'}: add some.")
        return members

    def encode(self, members: NDArray[np.int64]) -> NDArray[np.float32]:
        encoding, parts = self.encoding, []
        if encoding.numeric:
            x = np.stack([self.numbers[name][members] for name in encoding.numeric], axis=1)
            parts.append((x - encoding.mean) * encoding.scale)
        for name, categories in encoding.categories.items():
            parts.append((self.column(name)[members][:, None] == np.array(categories)).astype(np.float64))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _encoding(self) -> Encoding:
        members = self.of_split("train")
        numeric = [name for name in self.features if name in self.numbers]
        x = np.stack([self.numbers[name][members] for name in numeric], axis=1) if numeric else np.empty((1, 0))
        deviation = x.std(0)
        # a column of one value keeps a deviation of rounding errors, which must not be blown up
        constant = deviation <= 1e-12 * np.maximum(np.abs(x).max(0), 1e-300)
        scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
        categories = {
            name: natural_order(self.column(name)[members]) for name in self.features if name not in self.numbers
        }
        return Encoding(numeric, x.mean(0), scale, categories)

    def _splits(self) -> NDArray[np.str_]:
        data, names = self.data, natural_order(self.labels)
        if data.split_column is None:
            division = self.data.division(names, data.num_ways, data.eval_num_ways, self.where)
            split_of_class = {name: split for split, members in division.items() for name in members}
            return np.array([split_of_class[name] for name in self.labels])
        words = self.column(data.split_column)
        found = {word: split_of(word) for word in np.unique(words).tolist()}
        for word, split in found.items():
            if split is None:
                line = self.table.lines[int((words == word).argmax())]
                known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
                raise UserError(
                    f"{self.where}, line {line}: column '{data.split_column}' holds '{word}', but must hold one of "
                    f"{known}."
                )
        splits = np.array([found[word] for word in words.tolist()], dtype=np.str_)
        classes_of_splits(self.labels, splits, self.where)
        return splits

    def _check_columns(self) -> None:
        data, columns = self.data, self.table.columns
        given = {"label": data.label, "split": data.split_column, "group": data.group_column}
        asked = [(argument, name) for argument, name in given.items() if name is not None]
        asked += [("features", name) for name in data.features or ()]
        asked += [("categorical", name) for name in data.categorical or ()]
        for argument, name in asked:
            if name not in columns:
                raise UserError(
                    f"{self.where} has no column '{name}' ({argument}), only {', '.join(columns)}"
                    f"{did_you_mean(name, columns)}"
                )
        if data.features is not None and data.label in data.features:
            raise UserError(f"features holds the label '{data.label}', which would give the answer away: leave it out.")

    def _check_filled(self, name: str) -> None:
        empty = _is_missing(self.column(name))
        if empty.any():
            line = self.table.lines[int(empty.argmax())]
            raise UserError(f"{self.where}, line {line}: the label '{name}' is empty: complete the row or remove it.")

    def _check_numeric(self, named: set[str], automatic: bool) -> None:
        """Where categories are named, all other features must be numbers.

        Raises:
            UserError: with the line of the first value that is none.
        """
        for name in self.features:
            if automatic or name in named or name in self.numbers:
                continue
            column = self.column(name)
            wrong = int(np.array([not _is_number(value) for value in column.tolist()]).argmax())
            raise UserError(
                f"{self.where}, line {self.table.lines[wrong]}: column '{name}' holds '{column[wrong]}', which is no "
                "number: mend it, or name the column in categorical."
            )


def read_table(path: str, delimiter: str | None = None) -> Table:
    """Reads a table as text.

    Args:
        path: ``.csv``, ``.tsv``, ``.tab``, ``.txt`` or ``.parquet``.
        delimiter: between fields; by the ending where left out.

    Returns:
        Its columns and cells.

    Raises:
        UserError: no such file, another ending, or a file that is no table (with the line).
    """
    file = check_file(path, "table")
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        table = _parquet(file)
    elif suffix in _DELIMITERS or delimiter is not None:
        table = _csv(file, delimiter or _DELIMITERS[suffix])
    else:
        raise UserError(
            f"table '{path}' must end in {', '.join([*_DELIMITERS, '.parquet'])}, but ends in '{suffix or file.name}': "
            "rename it, or say the delimiter."
        )
    double = {name for name in table.columns if table.columns.count(name) > 1}
    if double:
        raise UserError(f"'{path}' has two columns called '{sorted(double)[0]}': rename one.")
    if not len(table.cells):
        raise UserError(f"'{path}' has no rows below the names of its columns.")
    return table


def _csv(file: Path, delimiter: str) -> Table:
    if len(delimiter) != 1:
        raise UserError(f"delimiter must be one character, but is '{delimiter}'.")
    rows: list[list[str]] = []
    lines: list[int] = []
    columns: list[str] = []
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.reader(opened, delimiter=delimiter, strict=True)
        begin = 1
        try:
            for row in reader:
                line, begin = begin, reader.line_num + 1
                if not any(field.strip() for field in row):
                    continue
                if not columns:
                    columns = [name.strip() for name in row]
                    continue
                if len(row) != len(columns):
                    raise UserError(
                        f"'{file}', line {line}: {len(row)} fields, but there are {len(columns)} columns: mend the "
                        "row, and put quotes around fields that hold the delimiter."
                    )
                rows.append([field.strip() for field in row])
                lines.append(line)
        except UnicodeDecodeError as error:
            raise UserError(f"'{file}', line {begin} or later: this is no UTF-8 text: save it as UTF-8.") from error
        except csv.Error as error:
            raise UserError(f"'{file}', the row from line {begin} on: {error}: mend its quotes.") from error
    if not columns:
        raise UserError(f"'{file}' is empty: the first row must name the columns.")
    cells = np.array(rows, dtype=np.str_) if rows else np.empty((0, len(columns)), dtype=np.str_)
    return Table(columns, cells, np.array(lines, dtype=np.int64))


def _parquet(file: Path) -> Table:
    """The columns as text; what is null is empty.

    Raises:
        UserError: damaged, with columns that are no numbers or texts, or the package is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"'{file}' needs pyarrow: install the extra, pip install 'metatransfer[tables]'.") from error
    try:
        content = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{file}' cannot be read as a parquet file ({' '.join(str(error).split())[:120]}).") from error
    columns = [str(name) for name in content.column_names]
    cells = []
    for name, column in zip(columns, content.columns, strict=True):
        if pyarrow.types.is_nested(column.type) or pyarrow.types.is_binary(column.type):
            raise UserError(f"'{file}': column '{name}' is of type {column.type}, but must hold numbers or texts.")
        cells.append(["" if value is None else str(value).strip() for value in column.to_pylist()])
    shaped = np.array(cells, dtype=np.str_).T if cells and cells[0] else np.empty((0, len(columns)), dtype=np.str_)
    return Table(columns, shaped, np.arange(1, len(shaped) + 1))


def _is_missing(column: NDArray[np.str_]) -> NDArray[np.bool_]:
    return np.isin(np.char.lower(column), _MISSING)


def _is_number(value: str) -> bool:
    if value.lower() in _MISSING:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def _numbers(column: NDArray[np.str_], automatic: bool) -> NDArray[np.float64] | None:
    """A column as numbers, missing ones as NaN; ``None`` where something in it is none."""
    values: Sequence[str] = column.tolist()
    if not all(_is_number(value) for value in values):
        return None
    if automatic and all(value.lower() in _MISSING for value in values):
        return None
    return np.array([float("nan") if value.lower() in _MISSING else float(value) for value in values])
