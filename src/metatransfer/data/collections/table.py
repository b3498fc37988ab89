"""Tables: CSV, TSV, JSON lines and parquet files with a label column."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metatransfer.checks import check_choice
from metatransfer.data.readers.image_source import ON_BAD_SAMPLE, OnBadSample
from metatransfer.data.readers.table_features import Columns, TableEncoder, TableSource, find_columns
from metatransfer.data.readers.tables import Table as Cells
from metatransfer.data.readers.tables import read_table
from metatransfer.data.sources import NO_CLASS, Collection, Source, group_of_classes, numbered
from metatransfer.errors import UserError


class Table(Collection):
    r"""Rows of a CSV, TSV, JSON lines or parquet file, with a column of labels.

    A sample is a row: its numeric columns standardised, :math:`(x-\mu)/\sigma` with the mean and standard deviation of
    the **training** rows (a constant column is 0), followed by its categorical columns as one-hot vectors over the
    values of the training rows (other values are all zeros). Rows are divided by the column ``split``, or undivided.

    Args:
        path: ``.csv``, ``.tsv``, ``.tab``, ``.txt``, ``.jsonl`` or ``.parquet`` (extra ``tables``), with named columns.
        label: column of the classes.
        features: columns of a sample. Defaults to all except ``label``, ``split`` and ``group``.
        categorical: features that are categories. Defaults to those that hold words. A column of numbers with a few
            other texts, or of words that are nearly all different, is an error.
        split: column with ``train``, ``val`` or ``test`` in each row.
        group: column with the group of each row (family, patient); all rows of a class must have the same.
        delimiter: between fields. By default the one of comma, semicolon, tab and bar that the first row
            contains; if it contains several or none, that of the file's extension.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count rows with a missing or infinite value.

    Raises:
        UserError: ``on_bad_sample`` is unknown, or ``features`` contains the label.
    """

    def __init__(
        self,
        path: str,
        label: str = "label",
        features: list[str] | None = None,
        categorical: list[str] | None = None,
        split: str | None = None,
        group: str | None = None,
        delimiter: str | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        check_choice("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        if features is not None and label in features:
            raise UserError(f"features holds the label '{label}', which would reveal the answer: remove it.")
        self.path, self.label, self.features, self.categorical = path, label, features, categorical
        self.split, self.group, self.delimiter, self.on_bad_sample = split, group, delimiter, on_bad_sample

    def parts(self) -> Mapping[str, Source]:
        """The rows, in memory."""
        cells = read_table(self.path, self.delimiter)
        labels = np.array(cells.labels(self.label))
        groups = np.array(cells.labels(self.group, "group")) if self.group is not None else None
        columns = self._find(cells)
        raw, bad = self._raw(cells, columns)
        parts: dict[str, Source] = {}
        for part, rows in cells.rows(self.split).items():
            kept = rows[~bad[rows]]
            self.skipped[part] = len(rows) - len(kept)
            name = f"'{self.path}'" if part == "all" else f"'{self.path}' {part}"
            if not len(kept):
                raise UserError(f"{name}: every row has a missing or infinite value: fill some in.")
            targets, names = numbered(labels[kept])
            of_class = group_of_classes(labels[kept], None if groups is None else groups[kept], names, f"'{self.path}'")
            parts[part] = TableSource(raw[kept], columns, targets, names, name, of_class)
        return parts

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """The rows of a file with the same features, named by file and line."""
        if not isinstance(path, str):
            return super().unlabelled(path)
        columns, cells = self._columns, read_table(path, self.delimiter)
        raw, bad = self._raw(cells, columns)
        kept = np.flatnonzero(~bad)
        self.skipped["predict"] = len(raw) - len(kept)
        source = TableSource(raw[kept], columns, np.zeros(len(kept), np.int64), [NO_CLASS], f"'{path}'")
        return source, tuple(f"{Path(path).name}:{cells.lines[row]}" for row in kept.tolist())

    def encoder(self, training: Source) -> TableEncoder:
        """The encoding fitted to the training rows."""
        rows = training.read(torch.arange(len(training)), torch.device("cpu"))
        assert isinstance(rows, torch.Tensor)
        return TableEncoder.fitted(self._columns, rows.numpy())

    def encoder_from(self, state: Mapping[str, Any]) -> TableEncoder:
        """The encoding of a checkpoint."""
        columns, trained = self._columns, state.get("columns", [])
        if trained != list(columns.names) or set(state["categories"]) != set(columns.values):
            raise UserError(
                f"the checkpoint was trained on the columns {', '.join(trained) or 'of other data'}, but '{self.path}' "
                f"has {', '.join(columns.names)}: set features to those of the training."
            )
        encoder = TableEncoder(columns, state["mean"], state["scale"], state["categories"])
        encoder(np.zeros((1, len(columns.names))))  # numbers of another shape would fail later
        return encoder

    def protocol(self) -> dict[str, Any]:
        """How the rows are divided and encoded."""
        split = {"split": f"by column '{self.split}'"} if self.split is not None else {}
        return split | {"features": "numeric standardised and categories one-hot, by the training rows"}

    @property
    def _columns(self) -> Columns:
        source = next(iter(self.opened().values()))
        assert isinstance(source, TableSource)
        return source.columns

    def _find(self, cells: Cells) -> Columns:
        for name in self.categorical or ():
            cells.column(name, "categorical")
        others = {self.label, self.split, self.group}
        names = self.features or [name for name in cells.columns if name not in others]
        if not names:
            raise UserError(f"'{self.path}' has no column other than the label: a sample needs at least one feature.")
        return find_columns(cells, names, self.categorical)

    def _raw(self, cells: Cells, columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The rows before they are encoded, and a mask of those with a missing value."""
        raw = columns.raw(cells)
        bad = ~np.isfinite(raw)
        rows: NDArray[np.bool_] = np.asarray(bad.any(axis=1))
        if rows.any() and self.on_bad_sample == "error":
            row = int(rows.argmax())
            name = columns.names[int(bad[row].argmax())]
            value = cells.words(name, "features")[row]
            raise UserError(
                f"{cells.at(row)}: column '{name}' {f'holds {value!r}' if value else 'is empty'}: fill it in, or set "
                f"on_bad_sample=skip to leave out and count such rows, {int(rows.sum())} here."
            )
        return raw, rows
