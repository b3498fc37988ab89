"""Texts that are read as tokens."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Tokens
from metatransfer.data.readers.text_tokenizers import Encoded, Tokenizer
from metatransfer.data.sources import Encoder, Source
from metatransfer.errors import UserError


class TextSource(Source):
    """Texts of one file or split; their tokens are made when first asked for, and kept.

    Args:
        texts: ``N``.
        targets: ``(N,)`` class of each.
        class_names: names of the classes.
        name: how messages call the set.
    """

    def __init__(self, texts: Sequence[str], targets: NDArray[np.int64], class_names: Sequence[str], name: str) -> None:
        super().__init__(targets, class_names, name)
        self.texts = list(texts)
        self._tokenizer: Tokenizer | None = None
        self._encoded: Encoded | None = None

    @property
    def in_memory(self) -> bool:
        """Always."""
        return True

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Nothing: texts differ in length."""
        return ()

    def encoded(self, encoder: Encoder) -> TextSource:
        """The same texts in the tokens of a tokenizer."""
        assert isinstance(encoder, Tokenizer)
        twin = copy.copy(self)
        twin._tokenizer, twin._encoded = encoder, None
        return twin

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(n,)`` tokens of each text."""
        return self._tokens()[0].lengths[indices]

    def show(self, index: int) -> str:
        """The text itself."""
        return self.texts[index]

    def update_fingerprint(self, digest: hashlib._Hash, indices: NDArray[np.int64]) -> None:
        """The texts themselves, whatever cuts them."""
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
                "tokenizer is null, so that there are texts but no tokens, which this method learns from: set "
                "tokenizer=words, or that of the pretrained network."
            )
        if self._encoded is None:
            self._encoded = self._tokenizer(self.texts)
        return self._encoded, self._tokenizer.pad
