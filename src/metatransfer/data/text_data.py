"""Labelled texts: CSV, TSV, JSON lines and parquet files with a column of texts and one of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_positive
from metatransfer.data.division import SPLIT_NAMES, natural_order, split_of
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.labelled_sampler import LabelledSampler
from metatransfer.data.loaders import EpisodeLoader
from metatransfer.data.sources import Source
from metatransfer.data.text_files import TextRows, read_texts
from metatransfer.data.text_source import LengthBucketSampler, TextSource
from metatransfer.data.text_tokenizers import WORDS, Encoded, Tokenizer, TokenizerFile, Words
from metatransfer.errors import UserError


class TextDataModule(LabelledDataModule):
    """Texts and their labels from files with named columns.

    The files bring the splits: ``train`` alone is divided at random, ``train`` and ``test`` are used as given, and
    ``split`` names a column of one file that says the split of each row. Batches are :class:`~metatransfer.Tokens`,
    padded to the longest text of each; those of the training have texts of similar lengths.

    With ``tokenizer="words"`` the vocabulary is that of the training texts, and goes into the checkpoint; a pretrained
    network needs its own tokeniser, of the same name as the network (extra ``text``). The remaining arguments are those
    of :class:`~metatransfer.data.labelled.LabelledDataModule`, but for those that change pictures.

    Args:
        train: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` (extra ``tables``) file of the training texts, or of all.
        val: file of the validation texts; a part of the training where left out.
        test: file of the test texts.
        text: column of the texts.
        label: column of the classes.
        split: column with ``train``, ``val`` or ``test`` in each row of ``train``.
        tokenizer: ``"words"``; a folder with ``tokenizer.json``; ``package:NAME``, one inside of an installed Python
            package; or a Hugging Face name that is in the local cache. ``null`` serves no tokens, only :meth:`texts`.
        max_length: tokens of a text at most; what is longer is cut off at its end.
        lower: whether upper and lower case are the same to ``"words"``, which they are where left out; any other
            tokeniser says so itself.
        predict: file of texts to label, of the kinds above or ``.txt`` with one in each line.
        delimiter: between the fields of CSV and TSV files; by the file's ending where left out.
        quotes: whether ``"`` encloses fields of CSV and TSV files; ``False`` takes it for a letter.
        **labelled: arguments of :class:`~metatransfer.data.labelled.LabelledDataModule`.

    Raises:
        UserError: ``split`` together with ``val`` or ``test``, ``lower`` for a tokeniser that decides on it itself, an
            argument for pictures, or as of the base.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        text: str = "text",
        label: str = "label",
        split: str | None = None,
        tokenizer: str | None = WORDS,
        max_length: int = 128,
        lower: bool | None = None,
        predict: str | None = None,
        delimiter: str | None = None,
        quotes: bool = True,
        **labelled: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**labelled)
        check_positive(max_length=max_length)
        if split is not None and (val is not None or test is not None):
            raise UserError(
                f"split='{split}' says that one file has all splits, but {'val' if val is not None else 'test'} is "
                "given, too: leave one of them out."
            )
        if lower is not None and tokenizer != WORDS:
            raise UserError(f"lower is for tokenizer={WORDS}, but '{tokenizer}' decides on it itself: leave it out.")
        for name in ("augmentation", "mix", "transform"):
            if labelled.get(name):
                raise UserError(f"{name} changes pictures, but {type(self).__name__} serves texts: leave it out.")
        self.files = {"train": train, "val": val, "test": test}
        self.columns = {"text": text, "label": label, "split": split}
        self.tokenizer_name, self.max_length, self.lower = tokenizer, max_length, lower
        self.predict_file, self.delimiter, self.quotes = predict, delimiter, quotes
        self._tokenizer: Tokenizer | None = None

    # ---- texts

    def parts(self) -> Mapping[str, TextSource]:
        """The texts of the files.

        Returns:
            ``"all"`` where one file comes undivided, else the splits that there are.

        Raises:
            UserError: a file that cannot be read, a mistake in one of its lines, or classes without training texts.
        """
        given = {name: path for name, path in self.files.items() if path is not None}
        rows = {name: self._rows(path) for name, path in given.items()}
        where = {name: f"'{path}'" for name, path in given.items()}
        if self.columns["split"] is not None:
            rows = _by_split(rows["train"], where["train"], self.columns["split"])
            where = {name: f"{where['train']} {name}" for name in rows}
        elif len(rows) == 1:
            rows, where = {"all": rows["train"]}, {"all": where["train"]}
        return {name: self._source(part, where[name]) for name, part in rows.items()}

    def unlabelled(self) -> tuple[TextSource, tuple[str, ...]]:
        """The texts to label, named by file and line.

        Raises:
            UserError: none are given, or the file cannot be read.
        """
        if self.predict_file is None:
            raise UserError("there is nothing to label: give a file of texts, --data.predict FILE.")
        rows = self._rows(self.predict_file, labelled=False)
        name = Path(self.predict_file).name
        source = self._source(rows._replace(labels=["?"] * len(rows.texts)), f"'{self.predict_file}'")
        return source, tuple(f"{name}:{line}" for line in rows.lines)

    def texts(self, split: str) -> list[str]:
        """The texts themselves, for methods that look at words rather than at tokens.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            ``N`` texts; their labels are ``split(name).labels``.
        """
        part = self.split(split)
        assert isinstance(part.source, TextSource)
        return [part.source.texts[index] for index in part.indices]

    def show(self, split: str, number: int) -> str:
        """A text."""
        if split == "predict":
            return self.unlabelled()[0].texts[number]
        part = self.split(split)
        assert isinstance(part.source, TextSource)
        return part.source.texts[int(part.indices[number])]

    def _rows(self, path: str, labelled: bool = True) -> TextRows:
        label, split = (self.columns["label"], self.columns["split"]) if labelled else (None, None)
        text = str(self.columns["text"])
        return read_texts(path, text, label, split, delimiter=self.delimiter, quotes=self.quotes)

    def _source(self, rows: TextRows, where: str) -> TextSource:
        names = natural_order(rows.labels)
        places = {name: place for place, name in enumerate(names)}
        labels = np.array([places[label] for label in rows.labels], np.int64)
        return TextSource(rows.texts, labels, names, where, self._encode, self._pad)

    # ---- tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the tokens; opened, or made from the training texts, when first asked for.

        Raises:
            UserError: there is none, it cannot be found, or its extra is missing.
        """
        if self._tokenizer is None:
            if self.tokenizer_name is None:
                raise UserError(
                    "tokenizer is null, so that there are texts but no tokens, which this method learns from: set "
                    f"tokenizer={WORDS}, or that of the pretrained network."
                )
            if self.tokenizer_name == WORDS:
                self._tokenizer = Words.of(self.texts("train"), self.lower is not False)
            else:
                self._tokenizer = TokenizerFile(self.tokenizer_name)
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, for networks that are to be built for them."""
        return self.tokenizer.size

    def _encode(self, texts: Sequence[str]) -> Encoded:
        return self.tokenizer(texts, self.max_length)

    def _pad(self) -> int:
        return self.tokenizer.pad

    def setup(self, stage: str | None = None) -> None:
        """Opens what a stage needs, the tokeniser with it.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"`` or ``None`` for all splits.
        """
        super().setup(stage)
        # to predict, the words come with the checkpoint, and the file that they are of may be gone
        if self.tokenizer_name is not None and (stage, self.tokenizer_name) != ("predict", WORDS):
            self.tokenizer([], self.max_length)  # refuses a length that is too short

    def reseeded(self, seed: int) -> Self:
        """As of the base; words are those of the other division's training texts.

        Args:
            seed: which.

        Returns:
            A copy, which makes tokens of its own where they depend on the division.
        """
        twin = super().reseeded(seed)
        if self.tokenizer_name == WORDS:
            twin._tokenizer = None
            twin._forget_tokens()
        return twin

    def _forget_tokens(self) -> None:
        """Tokens are made anew when next asked for, by the tokeniser that there is then."""
        self._splits = None
        self._parts = {name: self._anew(source) for name, source in self._parts.items()} if self._parts else None
        self._to_label = (self._anew(self._to_label[0]), self._to_label[1]) if self._to_label else None

    def _anew(self, source: Source) -> TextSource:
        assert isinstance(source, TextSource)
        return source.tokenized_by(self._encode, self._pad)

    def state_dict(self) -> dict[str, Any]:
        """The tokeniser, without which the weights mean nothing."""
        return {} if self.tokenizer_name is None else {"tokenizer": self.tokenizer.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the words that the checkpoint was trained with, whatever the training file holds now.

        Args:
            state_dict: of the checkpoint.

        Raises:
            UserError: it was trained with another tokeniser.
        """
        trained = state_dict.get("tokenizer")
        if trained is None or self.tokenizer_name is None:
            return
        if trained["kind"] == WORDS == self.tokenizer_name:
            self._tokenizer = Words.from_state(trained)
            self._forget_tokens()
        elif trained.get("sha256") != self.tokenizer.state().get("sha256"):
            name = trained.get("name", WORDS)
            raise UserError(
                f"the checkpoint was trained with the tokenizer '{name}', but the data has '{self.tokenizer_name}'"
                f"{', whose file has changed since' if name == self.tokenizer_name else ''}: its numbers would mean "
                "other words; set the one of the training."
            )

    # ---- batches

    def content_key(self, split: str) -> str:
        """As of the base, with all that makes tokens of the texts; not where the tokeniser lies.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Hexadecimal digits.
        """
        key = super().content_key(split)
        if self.tokenizer_name is None:
            return key
        tokens = {name: value for name, value in self.tokenizer.state().items() if name != "name"}
        return hashlib.sha256(f"{key} {tokens} {self.tokenizer.pad} {self.max_length}".encode()).hexdigest()

    def samples_by_length(self, split: str) -> EpisodeLoader:
        """The texts of a split once, from the longest to the shortest, so that next to nothing is padded.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Batches that name the number of each text; in its natural order they would take a transformer longer.
        """
        return self._loader(_ByLength(self.split(split), self.seed), self.eval_batch_size, training=False)

    def _sampler(self, split: str, training: bool) -> LabelledSampler:
        if not training:
            return super()._sampler(split, training)
        part, world = self.split(split), self.trainer.world_size if self.trainer else 1
        step = world * max(1, min(self.batch_size, len(part) // world))
        return LengthBucketSampler(
            part, self.seed, shuffled=True, balance=self.balance, num_classes=self.num_classes, step=step
        )

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the tokeniser."""
        return super().protocol() | {
            "tokenizer": self.tokenizer_name,
            "vocabulary": self.tokenizer.size if self.tokenizer_name is not None else None,
            "max_length": self.max_length,
            "lengths": "batches of similar lengths in training, padded to the longest text of each",
        }


class _ByLength(LabelledSampler):
    """The longest texts first: what does not fit into memory fails at once."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        source = self.split.source
        assert isinstance(source, TextSource)
        return (-source.encoded.lengths[self.split.indices]).argsort(kind="stable")


def _by_split(rows: TextRows, where: str, column: str) -> dict[str, TextRows]:
    """The rows of each split that occurs.

    Raises:
        UserError: a word that is no split (with its line), or no training rows.
    """
    found: dict[str, list[int]] = {}
    for place, word in enumerate(rows.splits):
        split = split_of(word)
        if split is None:
            known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
            raise UserError(
                f"{where}, {rows.unit} {rows.lines[place]}: column '{column}' holds '{word[:30]}', but must hold one "
                f"of {known}."
            )
        found.setdefault(split, []).append(place)
    if "train" not in found:
        raise UserError(f"{where} has no rows for train in column '{column}', only for {', '.join(found)}: add some.")
    return {split: rows.at(places) for split, places in found.items()}
