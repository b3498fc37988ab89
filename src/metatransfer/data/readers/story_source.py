"""Stories with a question: files of the bAbI tasks, and their sentences as tokens."""

import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Tokens
from metatransfer.checks import check_file
from metatransfer.data.readers.text_source import Tokenizer, Words
from metatransfer.data.sources import NO_CLASS, Encoder, Source, numbered
from metatransfer.errors import UserError

_MAX_WORDS = 100  # of a sentence
_LINE = re.compile(r"(\d+) +(\S.*)")
_BETWEEN_SENTENCES = re.compile(r"\n+|(?<=[.?!])\s+")


class Question(NamedTuple):
    """A question about a story.

    Attributes:
        sentences: the sentences of the story, and the question at the end.
        answer: the answer; ``None`` if it is not known.
        story: number of the story, which several questions may share.
        line: number of the line of its file.
    """

    sentences: tuple[str, ...]
    answer: str | None = None
    story: int = 0
    line: int = 0


def read_babi(path: str | Path) -> list[Question]:
    r"""The questions of a file of the bAbI tasks (Weston et al. 2015, 1502.05698).

    A line is ``NUMBER SENTENCE``, or ``NUMBER QUESTION\tANSWER\tLINES``; number 1 starts a new story. The story of a
    question consists of all sentences before it. A question may lack its answer: then it ends with ``?``.

    Raises:
        UserError: the file does not exist, a line has another form, or the file has no question.
    """
    file = check_file(Path(path).expanduser(), "bAbI file", "put it there, or give the path of yours")
    found: list[Question] = []
    story: list[str] = []
    count = 0
    for line, text in enumerate(_lines(file), start=1):
        number, sentence = _parsed(text, f"'{file}', line {line}")
        if number == 1:
            story, count = [], count + 1
        sentence, *more = (part.strip() for part in sentence.split("\t"))
        if more or sentence.endswith("?"):
            found.append(Question((*story, sentence), more[0].lower() if more else None, count, line))
        else:
            story.append(sentence)
    if not found:
        raise UserError(f"'{file}' has no question, so it is not a bAbI file: give one such as qa1_*_train.txt.")
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' is not a bAbI file, because it is not a text file in UTF-8: give one.") from error


def _parsed(line: str, where: str) -> tuple[int, str]:
    match = _LINE.fullmatch(line.rstrip())
    if match is None:
        raise UserError(
            f"{where}: a bAbI file has lines such as '1 Mary went home.', or a question, its answer and the lines that "
            f"support it, separated by tabs, but this is {line[:40]!r}: give a file of the bAbI tasks."
        )
    return int(match[1]), match[2]


def question_of(text: str) -> Question:
    """Sentences in one text, of which the last one is the question: ``"Mary went home. Where is Mary?"``."""
    return Question(tuple(part for part in _BETWEEN_SENTENCES.split(text.strip()) if part) or ("",))


class StorySource(Source):
    """Questions about stories; without answers all are in the class ``NO_CLASS``.

    A sample has one row of tokens for each sentence: the question first, then the story from its last sentence to its
    first one. Different stories share their sentences, so each is tokenized and stored once.
    """

    in_memory = True

    def __init__(self, questions: Sequence[Question], name: str) -> None:
        super().__init__(*numbered([NO_CLASS if one.answer is None else one.answer for one in questions]), name)
        numbers = {"": 0}
        rows = [
            [numbers.setdefault(sentence, len(numbers)) for sentence in reversed(one.sentences)] for one in questions
        ]
        self.rows = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
        for place, row in enumerate(rows):
            self.rows[place, : len(row)] = row
        self.sentences = list(numbers)
        self._encoded: Tokens | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``()``, because stories and sentences differ in length."""
        return ()

    def words(self) -> Words:
        """The words of the sentences."""
        return Words.of(map(_bare, self.sentences), True, _MAX_WORDS)

    def encoded(self, encoder: Encoder) -> "StorySource":
        """The same stories with the tokens of a tokenizer."""
        assert isinstance(encoder, Tokenizer)
        twin = copy.copy(self)
        ids, mask = encoder(list(map(_bare, self.sentences))).padded(np.arange(len(self.sentences)), encoder.pad)
        ids[0], mask[0] = encoder.pad, 0  # no sentence
        twin._encoded = Tokens(torch.from_numpy(ids), torch.from_numpy(mask))
        return twin

    def show(self, index: int) -> str:
        """The story and its question as one text."""
        return " ".join(self.sentences[number] for number in self.rows[index][::-1].tolist() if number)

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The stories themselves, whatever the tokenizer."""
        for index in indices.tolist():
            content = self.show(index).encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)

    def read(self, indices: Tensor, device: torch.device) -> Tokens:
        """Tokens ``(*indices.shape, 1 + sentences, words)``, padded to the longest story and sentence of the set."""
        assert self._encoded is not None, "stories are read through an encoder"
        rows = torch.from_numpy(self.rows[indices.numpy()].astype(np.int64))
        return Tokens(*(part[rows].to(device, non_blocking=True) for part in self._encoded))


def _bare(sentence: str) -> str:
    """A sentence without the mark at its end, which would be a word like others."""
    return sentence.rstrip(" .?!")


def words_from(vocabulary: Sequence[str]) -> Words:
    """The tokenizer of a saved vocabulary."""
    return Words(vocabulary, True, _MAX_WORDS)
