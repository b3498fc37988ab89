"""From texts to the numbers of their tokens: own words, or a ``tokenizer.json`` of a pretrained model."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.data.sources import Encoder
from metatransfer.errors import UserError
from metatransfer.model_folders import find_model_folder

WORDS = "words"
CASED_WORDS = "cased words"
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_AT_ONCE = 4096  # texts for which all that the library notes of a token is held


class Encoded:
    """The tokens of many texts, one after the other.

    Args:
        rows: the numbers of each text's tokens.

    Attributes:
        flat: ``(K,)`` int32 numbers of all tokens.
        offsets: ``(N + 1,)`` where each text starts in ``flat``, and its end.
    """

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        parts = [np.asarray(row, np.int32) for row in rows]
        self.offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.flat = np.concatenate([np.empty(0, np.int32), *parts])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``(N,)`` tokens of each text."""
        return np.diff(self.offsets)

    def padded(self, indices: NDArray[np.int64], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Some of the texts, padded to the longest of them."""
        lengths = self.lengths[indices]
        places = np.arange(lengths.max(initial=1))
        mask = places < lengths[:, None]
        ids = np.full(mask.shape, pad, np.int64)
        ids[mask] = self.flat[(self.offsets[indices][:, None] + places)[mask]]
        return ids, mask.astype(np.int64)


class Tokenizer(Encoder):
    """Cuts texts into tokens, and knows each by a number.

    Args:
        max_length: tokens of a text at most, those that mark its start and end among them.

    Attributes:
        pad: number of the token that fills up shorter texts.
    """

    pad: int = 0

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The tokens of texts, at least one of each."""

    def key(self) -> str:
        """A hash of all that makes tokens of the texts; not of where the tokenizer is stored."""
        tokens = {name: value for name, value in self.state().items() if name != "name"}
        return hashlib.sha256(f"{tokens} {self.pad} {self.max_length}".encode()).hexdigest()


class Words(Tokenizer):
    """Unicode words and punctuation marks, numbered by how often the training texts have them.

    Args:
        vocabulary: the words from number 2 on; 0 is ``<pad>`` and 1 ``<unk>``, a word that is none of them.
        lower: whether upper and lower case are the same.
        max_length: tokens of a text at most.
    """

    def __init__(self, vocabulary: Sequence[str], lower: bool, max_length: int) -> None:
        super().__init__(max_length)
        self.vocabulary, self.lower = list(vocabulary), lower
        self._numbers = {word: number for number, word in enumerate(self.vocabulary, start=2)}
        self.size = 2 + len(self.vocabulary)

    @classmethod
    def of(cls, texts: Iterable[str], lower: bool, max_length: int) -> Words:
        """The words of the training texts, the most frequent first."""
        counts = Counter(word for text in texts for word in _words(text, lower))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), lower, max_length)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The words of each text; a text without a word is one ``<unk>``."""
        numbers = self._numbers
        return Encoded(
            [numbers.get(word, 1) for word in _words(text, self.lower)[: self.max_length]] or [1] for text in texts
        )

    def state(self) -> dict[str, Any]:
        """The vocabulary."""
        return {"kind": WORDS, "vocabulary": self.vocabulary, "lower": self.lower}


def _words(text: str, lower: bool) -> list[str]:
    return _WORD.findall(text.lower() if lower else text)


class TokenizerFile(Tokenizer):
    """The tokeniser of a pretrained model.

    Args:
        reference: a folder with ``tokenizer.json``, ``package:NAME``, or a Hugging Face name in the local cache; see
            :func:`metatransfer.model_folders.find_model_folder`.

        max_length: tokens of a text at most.

    Raises:
        UserError: not found, not readable, or the extra is missing.
    """

    shared = True

    def __init__(self, reference: str, max_length: int) -> None:
        super().__init__(max_length)
        self.reference = reference
        folder = find_model_folder(reference, ["tokenizer.json"], "tokenizer")
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                f"tokenizer '{reference}' needs the package tokenizers: install the extra, pip install "
                f"'metatransfer[text]', or set tokenizer={WORDS}."
            ) from error
        file = folder / "tokenizer.json"
        content = file.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._inner = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises no narrower one
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"'{file}' cannot be read as a tokenizer ({reason}): download it again, or save it with a tokenizers "
                "version that is not newer than the one installed."
            ) from error
        self.pad = self._pad_of(folder)
        self._inner.no_padding()  # a file may ask for a fixed length
        self.size = self._inner.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The tokens of each text, with the marks of start and end that the model was trained with.

        Raises:
            UserError: ``max_length`` leaves no room for anything but marks.
        """
        marks = self._inner.num_special_tokens_to_add(False)
        if self.max_length <= marks:
            raise UserError(
                f"max_length must be above {marks}, the marks that tokenizer '{self.reference}' puts around each text, "
                f"but is {self.max_length}."
            )
        self._inner.enable_truncation(self.max_length)
        parts = (list(texts[start : start + _AT_ONCE]) for start in range(0, len(texts), _AT_ONCE))
        return Encoded(one.ids or [self.pad] for part in parts for one in self._inner.encode_batch_fast(part))

    def state(self) -> dict[str, Any]:
        """The checksum of the file."""
        return {"kind": "file", "name": self.reference, "sha256": self.digest}

    def _pad_of(self, folder: Path) -> int:
        """The number of the padding token; some networks tell positions by it."""
        if self._inner.padding:
            return int(self._inner.padding["pad_id"])
        names: list[Any] = ["[PAD]", "<pad>"]
        config = folder / "tokenizer_config.json"
        if config.is_file():
            try:
                named = json.loads(config.read_text(encoding="utf-8")).get("pad_token")
            except (ValueError, AttributeError):
                named = None  # a second opinion, which may be missing
            names.insert(0, named.get("content") if isinstance(named, dict) else named)
        numbers = (self._inner.token_to_id(name) for name in names if isinstance(name, str))
        return next((number for number in numbers if number is not None), 0)
