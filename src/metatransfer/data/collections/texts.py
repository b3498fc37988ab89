"""Labelled texts: CSV, TSV, JSON lines and parquet files with a column of texts and one of labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metatransfer.checks import check_positive
from metatransfer.data.readers.tables import read_lines, read_table
from metatransfer.data.readers.text_source import CASED_WORDS, WORDS, TextSource, Tokenizer, TokenizerFile, Words
from metatransfer.data.sources import Collection, Source, UnlabelledPart
from metatransfer.errors import UserError

_Part = tuple[list[str], list[str] | None, str]  # texts, their labels, and a name for messages


class Texts(Collection):
    """Texts and their labels from files with named columns.

    The splits are separate files for ``val`` and ``test``, or a column ``split`` of one file; one file without that
    column is undivided. With ``tokenizer="words"`` the vocabulary is that of the training texts and is saved in the
    checkpoint; a pretrained network needs its own tokenizer, with the name of the network (extra ``text``).

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` (extra ``tables``) file of the training or of all texts.
        val: file of the validation texts.
        test: file of the test texts.
        text: column of the texts.
        label: column of the classes; a target domain needs none.
        split: column with ``train``, ``val`` or ``test`` in each row of ``path``.
        tokenizer: ``"words"``; ``"cased words"`` to distinguish upper and lower case; a folder with
            ``tokenizer.json``; ``package:NAME`` for one in an installed Python package; or a Hugging Face name in the
            local cache. ``null`` serves no tokens, for methods that read the texts themselves.
        max_length: maximum number of tokens of a text; longer texts are truncated.
        delimiter: between the fields of CSV and TSV files. By default the one of comma, semicolon, tab and bar that
            the first row contains; if it contains several or none, that of the file's extension.
        quotes: whether ``"`` encloses fields of CSV and TSV files; if ``False``, it is an ordinary character.

    Raises:
        UserError: ``split`` is given together with ``val`` or ``test``, or ``max_length`` is not positive.
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
                "given, too: remove one of them."
            )
        self.path, self.text, self.label, self.split = path, text, label, split
        self.files = {"train": path} | {name: one for name, one in (("val", val), ("test", test)) if one is not None}
        self.tokenizer, self.max_length = tokenizer, max_length
        self.delimiter, self.quotes = delimiter, quotes

    def parts(self) -> Mapping[str, Source]:
        """The texts of the files."""
        return {name: TextSource(*part) for name, part in self._read(labelled=True).items()}

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The texts in the order of the files, with or without a column of classes."""
        return {
            name: UnlabelledPart(
                TextSource(texts, None, where), np.array(labels, np.str_) if labels is not None else None
            )
            for name, (texts, labels, where) in self._read(labelled=False).items()
        }

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """The texts of a table, or of a ``.txt`` file with one text per line, named by file and line; or a list."""
        if not isinstance(path, str):
            return TextSource(path, None, "the texts"), tuple(path)
        lines = path.lower().endswith(".txt") and self.delimiter is None
        table = read_lines(path, self.text) if lines else read_table(path, self.delimiter, self.quotes, [self.text])
        source = TextSource(table.filled(self.text, "text", (str,)), None, f"'{path}'")
        return source, tuple(f"{Path(path).name}:{line}" for line in table.lines)

    def encoder(self, training: Source) -> Tokenizer | None:
        """The tokenizer, read from a file or made from the training texts; ``None`` if ``tokenizer`` is."""
        if self.tokenizer not in (WORDS, CASED_WORDS):
            return self._opened_file()
        texts = (str(training.show(index)) for index in range(len(training)))
        return Words.of(texts, self.tokenizer == WORDS, self.max_length)

    def encoder_from(self, state: Mapping[str, Any]) -> Tokenizer | None:
        """The tokenizer of a checkpoint, with its vocabulary even if the training file has changed."""
        own = None if self.tokenizer in (WORDS, CASED_WORDS) else self._opened_file()
        if self.tokenizer is None or (own is not None and state.get("sha256") == own.state()["sha256"]):
            return own
        if own is not None or state["kind"] != WORDS:
            name = state.get("name", WORDS)
            changed = ", whose file has changed" if name == self.tokenizer else ""
            raise UserError(
                f"the checkpoint was trained with tokenizer '{name}', but the data has '{self.tokenizer}'{changed}: "
                "set the tokenizer of the training."
            )
        return Words(state["vocabulary"], state["lower"], self.max_length)

    def protocol(self) -> dict[str, Any]:
        """The tokenizer."""
        return {"tokenizer": self.tokenizer, "max_length": self.max_length}

    def _opened_file(self) -> Tokenizer | None:
        return None if self.tokenizer is None else TokenizerFile(self.tokenizer, self.max_length)

    def _read(self, *, labelled: bool) -> dict[str, _Part]:
        """Texts, labels and name of each part; labels are optional unless ``labelled``."""
        if len(self.files) == 1:
            return self._rows(self.path, labelled)
        return {name: self._rows(path, labelled)["all"] for name, path in self.files.items()}

    def _rows(self, path: str, labelled: bool) -> dict[str, _Part]:
        wanted = [self.text, self.label, *([self.split] if self.split is not None else [])]
        table = read_table(path, self.delimiter, self.quotes, wanted)
        texts = table.filled(self.text, "text", (str,))
        needed = labelled or self.label != "label" or "label" in table.columns  # another name was set by the user
        labels = table.labels(self.label) if needed else None
        found: dict[str, _Part] = {}
        for name, rows in table.rows(self.split).items():
            words = [labels[row] for row in rows] if labels is not None else None
            found[name] = [texts[row] for row in rows], words, f"'{path}'" if name == "all" else f"'{path}' {name}"
        return found
