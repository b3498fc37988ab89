"""The columns of a table as numbers, standardised with statistics of the training rows."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metatransfer.data.readers.tables import MISSING, Table
from metatransfer.data.sources import Encoder, TensorSource, natural_order
from metatransfer.errors import UserError

_LIKE_NUMBER = re.compile(r"\W*\d")  # 5,13 or 5 % or <0.1 or 2021-03-04
_FEW, _SOME = 10, 20  # different words that a column of categories may always hold


class Columns(NamedTuple):
    """The columns of a sample.

    Attributes:
        names: of all columns, in order.
        values: the values of each categorical column, numbered in the order of their first occurrence.
    """

    names: tuple[str, ...]
    values: Mapping[str, Mapping[str, int]]

    @property
    def numeric(self) -> list[int]:
        """The places of the numeric columns."""
        return [place for place, name in enumerate(self.names) if name not in self.values]

    def recoded(self, rows: NDArray[np.float64], other: "Columns", where: str) -> NDArray[np.float64]:
        """Rows ``(N, F)`` in the order and with the numbers of another table's columns, -1 for values it lacks."""
        if self == other:
            return rows
        if set(self.names) != set(other.names) or set(self.values) != set(other.values):
            told = [", ".join(f"{name} (words)" if name in one.values else name for name in one.names)
                    for one in (other, self)]  # fmt: skip
            raise UserError(
                f"all tables must have the same columns, but the first has {told[0]}, and {where} has {told[1]}: list "
                "those that they share in features, and those of words in categorical."
            )
        found = rows[:, [self.names.index(name) for name in other.names]]
        for place, name in enumerate(other.names):
            if name in other.values:
                numbers = [other.values[name].get(word, -1) for word in self.values[name]]
                found[:, place] = np.array([*numbers, -1], np.float64)[found[:, place].astype(np.int64)]  # -1 stays
        return found

    def raw(self, table: Table) -> NDArray[np.float64]:
        """The rows before they are encoded, ``(N, F)``; missing values are NaN."""
        return np.stack([self._column(table, name) for name in self.names], axis=1)

    def _column(self, table: Table, name: str) -> NDArray[np.float64]:
        words = table.words(name, "features")
        if name in self.values:
            places = self.values[name]
            return np.array([np.nan if is_missing(word) else places.get(word, -1) for word in words], np.float64)
        for row, word in enumerate(words):
            if not _is_number(word):
                raise UserError(
                    f"{table.at(row)}: column '{name}' holds '{word[:30]}', which is not a number: write a number such "
                    "as 5.13, or list the column in categorical."
                )
        return np.array([np.nan if is_missing(word) else float(word) for word in words])


def find_columns(table: Table, names: Sequence[str], categorical: Sequence[str] | None) -> Columns:
    """Finds out which columns are numeric and which are categorical."""
    values: dict[str, dict[str, int]] = {}
    for name in names:
        words = table.words(name, "features")
        if name in categorical if categorical is not None else _is_categorical(table, name, words):
            values[name] = {word: place for place, word in enumerate(dict.fromkeys(words))}
    return Columns(tuple(names), values)


def _is_categorical(table: Table, name: str, words: Sequence[str]) -> bool:
    """Whether a column holds categories; numbers in another spelling, or names of single rows, are an error."""
    present = [word for word in words if not is_missing(word)]
    odd = [word for word in present if not _is_number(word)]
    if not odd:
        return not present
    different = set(present)
    where = f"{table.at(words.index(odd[0]))}: column '{name}' holds '{odd[0]:.30}'"
    remedy = "leave the column out of features, or list it with all other columns of words in categorical."
    if len(odd) <= len(present) / 2:
        raise UserError(
            f"{where}, but {len(present) - len(odd)} of its {len(present)} values are numbers: write a number such as "
            f"5.13, or nothing if it is missing; or {remedy}"
        )
    like_numbers = sum(bool(_LIKE_NUMBER.match(word)) for word in different)
    commas = all(re.fullmatch(r"[+-]?\d*,\d+|[+-]?\d+", word) for word in different)  # as in many semicolon files
    if commas or (len(different) > _FEW and like_numbers > len(different) / 2):
        raise UserError(
            f"{where} and {len(different) - 1} other texts that begin like numbers: write numbers such as 5.13 without "
            f"comma, unit, percent sign or '<', and dates as numbers of days; or {remedy}"
        )
    if len(different) > max(_SOME, len(present) / 2):
        raise UserError(
            f"{where} and {len(different) - 1} other words in {len(words)} rows, each of which would be a feature: "
            f"{remedy}"
        )
    return True


class TableEncoder(Encoder):
    r"""Numbers as :math:`(x-\mu)/\sigma` (a constant column as 0), followed by categories as one-hot vectors.

    Args:
        columns: of the table.
        mean: mean of each numeric column over the training rows.
        scale: 1 / standard deviation of each numeric column, or 0 if it is constant.
        categories: values of each categorical column in the training rows, in order.
    """

    size = 0  # there are no tokens

    def __init__(
        self, columns: Columns, mean: ArrayLike, scale: ArrayLike, categories: Mapping[str, Sequence[str]]
    ) -> None:
        self.columns, self.categories = columns, {name: list(values) for name, values in categories.items()}
        self.mean, self.scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)

    @classmethod
    def fitted(cls, columns: Columns, rows: NDArray[np.float64]) -> "TableEncoder":
        """The encoder of training rows."""
        x = np.ascontiguousarray(rows[:, columns.numeric])
        deviation = x.std(0)
        # the deviation of a constant column is a rounding error, which must not be amplified
        constant = deviation <= 1e-12 * np.maximum(np.abs(x).max(0, initial=0), 1e-300)
        scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
        categories = {}
        for place, name in enumerate(columns.names):
            if name in columns.values:
                there = set(rows[:, place].tolist())
                categories[name] = natural_order([word for word, one in columns.values[name].items() if one in there])
        return cls(columns, x.mean(0), scale, categories)

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float32]:
        """Rows ``(N, F)`` as samples ``(N, D)``; a category that is not in the training rows becomes all zeros."""
        parts = [(rows[:, self.columns.numeric] - self.mean) * self.scale]
        for place, name in enumerate(self.columns.names):
            if name in self.categories:
                values = [self.columns.values[name].get(word, -2) for word in self.categories[name]]
                parts.append((rows[:, place, None] == np.array(values, np.float64)).astype(np.float64))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """The columns and the statistics of the training rows."""
        return {
            "kind": "table",
            "columns": list(self.columns.names),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "categories": self.categories,
        }

    def key(self) -> str:
        """A hash of the state."""
        return hashlib.sha256(json.dumps(self.state()).encode()).hexdigest()


class TableSource(TensorSource):
    """Rows ``(N, F)`` float64 of a table without missing values, encoded once the training rows are known."""

    def __init__(
        self,
        rows: NDArray[np.float64],
        columns: Columns,
        targets: NDArray[np.int64],
        class_names: Sequence[str],
        name: str,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(torch.from_numpy(rows), targets, class_names, name, groups)
        self.columns = columns

    def read(self, indices: Tensor, device: torch.device) -> Tensor:
        """The rows before they are encoded, in float64."""
        return self.data[indices].to(device)

    def encoded(self, encoder: Encoder) -> TensorSource:
        """The samples; the encoder of another table finds its columns and categories by their names.

        Raises:
            UserError: the encoder is of other columns.
        """
        assert isinstance(encoder, TableEncoder)
        samples = torch.from_numpy(encoder(self.columns.recoded(self.data.numpy(), encoder.columns, self.name)))
        return TensorSource(samples, self.targets, self.class_names, self.name, self.groups)

    def show(self, index: int) -> str:
        """The cells of a row."""
        words = {name: list(values) for name, values in self.columns.values.items()}
        cells = zip(self.columns.names, self.data[index].tolist(), strict=True)
        told = [f"{name}: {words[name][int(cell)] if name in words else f'{cell:g}'}" for name, cell in cells]
        return ", ".join(told[:8]) + ", ..." * (len(told) > 8)


def is_missing(word: str) -> bool:
    """Whether a cell has no value."""
    return word.lower() in MISSING


def _is_number(word: str) -> bool:
    try:
        return is_missing(word) or ("_" not in word and float(word) is not None)
    except ValueError:
        return False
