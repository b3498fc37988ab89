"""Texts and their tokens, which are words or come from the ``tokenizer.json`` of a pretrained model."""

import contextlib
import copy
import hashlib
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Tokens
from metatransfer.data.sources import NO_CLASS, Encoder, Source, numbered
from metatransfer.errors import UserError, explained
from metatransfer.model_folders import find_model_folder

WORDS = "words"
CASED_WORDS = "cased words"
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_AT_ONCE = 4096  # texts, because the library keeps much about each token


class Encoded:
    """The tokens of many texts, concatenated.

    Attributes:
        flat: ``(K,)`` int32 numbers of all tokens.
        lengths: ``(N,)`` number of tokens of each text.
        offsets: ``(N,)`` start of each text in ``flat``.
    """

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        parts = [np.asarray(row, np.int32) for row in rows]
        self.lengths = np.array([len(part) for part in parts], np.int64)
        self.offsets = self.lengths.cumsum() - self.lengths
        self.flat = np.concatenate([np.empty(0, np.int32), *parts])

    def padded(self, indices: NDArray[np.int64], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token numbers and mask of some texts, padded to the longest of them."""
        lengths = self.lengths[indices]
        places = np.arange(lengths.max(initial=1))
        mask = places < lengths[:, None]
        ids = np.full(mask.shape, pad, np.int64)
        ids[mask] = self.flat[(self.offsets[indices][:, None] + places)[mask]]
        return ids, mask.astype(np.int64)


class Tokenizer(Encoder):
    """Splits texts into at most ``max_length`` numbered tokens; ``pad`` is the number of the padding token."""

    pad: int = 0

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The tokens of texts, at least one for each."""

    def key(self) -> str:
        """A hash of everything that affects the tokens, so not of the tokenizer's place."""
        tokens = {name: value for name, value in self.state().items() if name != "name"}
        return hashlib.sha256(f"{tokens} {self.pad} {self.max_length}".encode()).hexdigest()


class Words(Tokenizer):
    """Unicode words and punctuation marks, numbered by their frequency in the training texts.

    Args:
        vocabulary: the words from number 2 on; 0 is ``<pad>`` and 1 ``<unk>``, any other word.
        lower: whether texts are converted to lower case.
        max_length: maximum number of words of a text.
    """

    def __init__(self, vocabulary: Sequence[str], lower: bool, max_length: int) -> None:
        super().__init__(max_length)
        self.vocabulary, self.lower = list(vocabulary), lower
        self._numbers = {word: number for number, word in enumerate(self.vocabulary, start=2)}
        self.size = 2 + len(self.vocabulary)

    @classmethod
    def of(cls, texts: Iterable[str], lower: bool, max_length: int) -> "Words":
        """Takes the words of the training texts, the most frequent first."""
        counts = Counter(word for text in texts for word in _words(text, lower))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), lower, max_length)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The words of each text; a text without words becomes one ``<unk>``."""
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
    """The tokenizer of a pretrained model.

    Args:
        reference: a folder with ``tokenizer.json``, ``package:NAME``, or a Hugging Face name in the local cache; see
            :func:`metatransfer.model_folders.find_model_folder`.
        max_length: maximum number of tokens of a text.

    Raises:
        UserError: the tokenizer is missing or unreadable, ``max_length`` too small, or the extra not installed.
    """

    shared = True

    def __init__(self, reference: str, max_length: int) -> None:
        super().__init__(max_length)
        self.reference = reference
        folder = find_model_folder(reference, ["tokenizer.json"], "tokenizer")
        extra = f"install the extra, pip install 'metatransfer[text]', or set tokenizer={WORDS}"
        with explained(f"tokenizer '{reference}' needs the package tokenizers", extra, ImportError, quoted=False):
            import tokenizers
        content = (folder / "tokenizer.json").read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        remedy = "download it again, or save it with a tokenizers version that is not newer than the one installed"
        with explained(f"'{folder}/tokenizer.json' cannot be read as a tokenizer", remedy):
            self._inner = tokenizers.Tokenizer.from_str(content.decode())
        marks = self._inner.num_special_tokens_to_add(False)
        if max_length <= marks:
            raise UserError(
                f"max_length must be above {marks}, the special tokens that tokenizer '{reference}' adds to each text, "
                f"but is {max_length}."
            )
        self.pad, self.size = self._pad_of(folder), self._inner.get_vocab_size()
        self._inner.no_padding()  # the file may set a fixed length
        self._inner.enable_truncation(max_length)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The tokens of each text, including those that mark its start and end for the model."""
        parts = (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE))
        return Encoded(one.ids or [self.pad] for part in parts for one in self._inner.encode_batch_fast(part))

    def state(self) -> dict[str, Any]:
        """The checksum of the file."""
        return {"kind": "file", "name": self.reference, "sha256": self.digest}

    def _pad_of(self, folder: Path) -> int:
        """The number of the padding token, from which some networks derive positions."""
        if self._inner.padding:
            return int(self._inner.padding["pad_id"])
        named = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the file is optional
            named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
        names = (named.get("content") if isinstance(named, dict) else named, "[PAD]", "<pad>")
        numbers = (self._inner.token_to_id(name) for name in names if isinstance(name, str))
        return next((number for number in numbers if number is not None), 0)


class TextSource(Source):
    """N texts of one file or split, tokenized on first use; without ``labels`` all are in the class ``NO_CLASS``."""

    in_memory = True

    def __init__(self, texts: Sequence[str], labels: Sequence[str] | None, name: str) -> None:
        super().__init__(*numbered(labels or [NO_CLASS] * len(texts)), name)
        self.texts = list(texts)
        self._tokenizer: Tokenizer | None = None
        self._encoded: Encoded | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``()``, because texts differ in length."""
        return ()

    def encoded(self, encoder: Encoder) -> "TextSource":
        """The same texts with the tokens of a tokenizer."""
        assert isinstance(encoder, Tokenizer)
        twin = copy.copy(self)
        twin._tokenizer, twin._encoded = encoder, None
        return twin

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(n,)`` number of tokens of each text."""
        return self._tokens()[0].lengths[indices]

    def show(self, index: int) -> str:
        """The text itself."""
        return self.texts[index]

    def update_fingerprint(self, digest: "hashlib._Hash", indices: NDArray[np.int64]) -> None:
        """The texts themselves, whatever the tokenizer."""
        for index in indices.tolist():
            content = self.texts[index].encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)

    def read(self, indices: Tensor, device: torch.device) -> Tokens:
        """Tokens, padded to the longest of these texts."""
        encoded, pad = self._tokens()
        parts = encoded.padded(indices.flatten().numpy(), pad)
        return Tokens(*(torch.from_numpy(one).view(*indices.shape, -1).to(device, non_blocking=True) for one in parts))

    def _tokens(self) -> tuple[Encoded, int]:
        if self._tokenizer is None:
            raise UserError(
                "tokenizer is null, but this method learns from tokens: set tokenizer=words, or the tokenizer of the "
                "pretrained network."
            )
        if self._encoded is None:
            self._encoded = self._tokenizer(self.texts)
        return self._encoded, self._tokenizer.pad
