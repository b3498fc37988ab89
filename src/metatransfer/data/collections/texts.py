"""Labelled texts: CSV, TSV, JSON lines and parquet files with a column of texts and one of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metatransfer.checks import check_positive
from metatransfer.data.collections.base import Collection
from metatransfer.data.readers.splits import rows_of_splits
from metatransfer.data.readers.tables import read_lines, read_table
from metatransfer.data.readers.text_source import TextSource
from metatransfer.data.readers.text_tokenizers import CASED_WORDS, WORDS, Tokenizer, TokenizerFile, Words
from metatransfer.data.sources import NO_CLASS, Source, UnlabelledPart, numbered
from metatransfer.errors import UserError


class Texts(Collection):
    """Texts and their labels from files with named columns.

    The files may bring the splits: further files for ``val`` and ``test``, or a column ``split`` of one file that says
    the split of each row; one file without that column comes undivided.

    With ``tokenizer="words"`` the vocabulary is that of the training texts, and goes into the checkpoint; a pretrained
    network needs its own tokenizer, of the same name as the network (extra ``text``).

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` (extra ``tables``) file of the training texts, or of all.
        val: file of the validation texts.
        test: file of the test texts.
        text: column of the texts.
        label: column of the classes; a target domain needs none.
        split: column with ``train``, ``val`` or ``test`` in each row of ``path``.
        tokenizer: ``"words"``, or ``"cased words"`` if upper and lower case are to differ; a folder with
            ``tokenizer.json``; ``package:NAME``, one inside of an installed Python package; or a Hugging Face name that
            is in the local cache. ``null`` serves no tokens, for methods that read the texts themselves.
        max_length: tokens of a text at most; what is longer is cut off at its end.
        delimiter: between the fields of CSV and TSV files; by the file's ending where left out.
        quotes: whether ``"`` encloses fields of CSV and TSV files; ``False`` treats it as an ordinary character.

    Raises:
        UserError: ``split`` together with ``val`` or ``test``, or a ``max_length`` that is not positive.
    """

    of_texts = True

    def __init__(
        self,
        path: str,
        val: str | None = None,
        test: str | None = None,
        text: str = "text",
        label: str = "label",
        split: str | None = None,
        tokenizer: str | None = WORDS,
        max_length: int = 128,
        delimiter: str | None = None,
        quotes: bool = True,
    ) -> None:
        check_positive(max_length=max_length)
        if split is not None and (val is not None or test is not None):
            raise UserError(
                f"split='{split}' says that one file has all splits, but {'val' if val is not None else 'test'} is "
                "given, too: leave one of them out."
            )
        self.path, self.text, self.label, self.split = path, text, label, split
        self.files = {"train": path} | {name: one for name, one in (("val", val), ("test", test)) if one is not None}
        self.tokenizer, self.max_length = tokenizer, max_length
        self.delimiter, self.quotes = delimiter, quotes

    def parts(self) -> Mapping[str, Source]:
        """The texts of the files."""
        return {name: one for name, (one, _) in self._read(labelled=True).items()}

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The texts in the order of the files, with or without the column of the classes."""
        return {
            name: UnlabelledPart(
                TextSource(one.texts, np.zeros(len(one), np.int64), [NO_CLASS], one.name),
                np.array(words, np.str_) if words is not None else None,
            )
            for name, (one, words) in self._read(labelled=False).items()
        }

    def unlabelled(self, path: str) -> tuple[Source, tuple[str, ...]]:
        """The texts of a file, which may also be a ``.txt`` file with one in each line; named by file and line."""
        lines = path.lower().endswith(".txt") and self.delimiter is None
        table = read_lines(path, self.text) if lines else read_table(path, self.delimiter, self.quotes, [self.text])
        texts, name = table.filled(self.text, "text", (str,)), Path(path).name
        source = TextSource(texts, np.zeros(len(texts), np.int64), [NO_CLASS], f"'{path}'")
        return source, tuple(f"{name}:{line}" for line in table.lines)

    def encoder(self, training: Source) -> Tokenizer | None:
        """The tokenizer, opened or made from the training texts; ``None`` where no tokens are wanted."""
        if self.tokenizer in (WORDS, CASED_WORDS):
            texts = (str(training.show(index)) for index in range(len(training)))
            return Words.of(texts, self.tokenizer == WORDS, self.max_length)
        return self._opened_file()

    def encoder_from(self, state: Mapping[str, Any]) -> Tokenizer | None:
        """The words that a checkpoint was trained with, whatever the training file holds now.

        Raises:
            UserError: it was trained with another tokenizer.
        """
        if self.tokenizer is None:
            return None
        own = None if self.tokenizer in (WORDS, CASED_WORDS) else self._opened_file()
        if own is None and state["kind"] == WORDS:
            return Words(state["vocabulary"], state["lower"], self.max_length)
        if own is None or state.get("sha256") != own.state()["sha256"]:
            name = state.get("name", WORDS)
            raise UserError(
                f"the checkpoint was trained with the tokenizer '{name}', but the data has '{self.tokenizer}'"
                f"{', whose file has changed since' if name == self.tokenizer else ''}: its numbers would mean other "
                "words; set the one of the training."
            )
        return own

    def protocol(self) -> dict[str, Any]:
        """The tokenizer."""
        return {"tokenizer": self.tokenizer, "max_length": self.max_length}

    # ---- reading

    def _opened_file(self) -> Tokenizer | None:
        if self.tokenizer is None:
            return None
        opened = TokenizerFile(self.tokenizer, self.max_length)
        opened([])  # raises an error for a length that is too short
        return opened

    def _read(self, *, labelled: bool) -> dict[str, tuple[TextSource, Sequence[str] | None]]:
        """The texts of each part with their labels, which may be missing unless they must be there."""
        if self.split is not None or len(self.files) == 1:
            return self._rows(self.path, "all", labelled)
        return {name: self._rows(path, name, labelled)[name] for name, path in self.files.items()}

    def _rows(self, path: str, part: str, labelled: bool) -> dict[str, tuple[TextSource, Sequence[str] | None]]:
        wanted = [self.text, self.label, *([self.split] if self.split is not None else [])]
        table = read_table(path, self.delimiter, self.quotes, wanted)
        texts = table.filled(self.text, "text", (str,))
        needed = labelled or self.label != "label" or "label" in table.columns  # another name is there on purpose
        labels = table.filled(self.label, "label") if needed else None
        rows = {part: np.arange(len(table))}
        if self.split is not None:
            rows = rows_of_splits(table.filled(self.split, "split"), self.split, f"'{path}'", table.at)
        found: dict[str, tuple[TextSource, Sequence[str] | None]] = {}
        for name, chosen in rows.items():
            words = [labels[row] for row in chosen] if labels is not None else None
            targets, names = numbered(words or [NO_CLASS] * len(chosen))
            where = f"'{path}' {name}" if self.split is not None else f"'{path}'"
            found[name] = TextSource([texts[row] for row in chosen], targets, names, where), words
        return found
