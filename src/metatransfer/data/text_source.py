"""Texts that are read as tokens, and batches of texts of similar lengths."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.batches import Tokens
from metatransfer.data.labelled_sampler import LabelledSampler
from metatransfer.data.sources import Source
from metatransfer.data.text_tokenizers import Encoded
from metatransfer.functional.random import random_permutations

_POOL = 50  # batches within which texts are sorted


class TextSource(Source):
    """Texts of one file or split; their tokens are made when first asked for, and kept.

    Args:
        texts: ``N``.
        labels: ``(N,)`` class of each.
        class_names: names of the classes.
        name: how to call the set in messages.
        encode: makes the tokens of texts.
        pad: gives the number of the padding token.
    """

    in_memory = True

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        class_names: Sequence[str],
        name: str,
        encode: Callable[[Sequence[str]], Encoded],
        pad: Callable[[], int],
    ) -> None:
        super().__init__(labels, class_names, name)
        self.texts = list(texts)
        self._encode, self._pad = encode, pad
        self._encoded: Encoded | None = None

    @property
    def encoded(self) -> Encoded:
        """The tokens of all texts."""
        if self._encoded is None:
            self._encoded = self._encode(self.texts)
        return self._encoded

    def tokenized_by(self, encode: Callable[[Sequence[str]], Encoded], pad: Callable[[], int]) -> TextSource:
        """The same texts in other tokens.

        Args:
            encode: as in the constructor.
            pad: as in the constructor.

        Returns:
            A source that shares the texts.
        """
        twin = copy.copy(self)
        twin._encode, twin._pad, twin._encoded = encode, pad, None
        return twin

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Nothing: texts differ in length."""
        return ()

    def update_fingerprint(self, digest: hashlib._Hash) -> None:
        """The texts themselves, whatever cuts them."""
        for text in self.texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)

    def read(self, indices: Tensor, device: torch.device) -> Tokens:  # type: ignore[override]
        """Tokens, padded to the longest of these texts.

        Args:
            indices: ``(N,)`` int64.
            device: where they are wanted.

        Returns:
            ``N`` texts.
        """
        parts = self.encoded.padded(indices.numpy(), self._pad())
        return Tokens(*(torch.from_numpy(part).to(device, non_blocking=True) for part in parts))


class LengthBucketSampler(LabelledSampler):
    """Shuffled batches of texts of similar lengths, so that little is padded.

    Every epoch is shuffled, cut into pools of 50 steps, and sorted by length within each; the steps are then shuffled.
    Texts beyond the last full step stay at the end: they are drawn before anything is sorted, so that no length is left
    out more often than another.

    Args:
        *arguments: those of :class:`~metatransfer.data.labelled.LabelledSampler`.
        step: samples of a training step, over all processes: so many one after the other have similar lengths.
        **options: those of :class:`~metatransfer.data.labelled.LabelledSampler`.
    """

    def __init__(self, *arguments: Any, step: int, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        self.step = step
        self._sorted: tuple[int, NDArray[np.int64]] | None = None

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the samples in an epoch.

        Args:
            epoch: its number.

        Returns:
            ``(N,)`` numbers of samples in the split, as of the base, in another order.
        """
        order = super().order(epoch)
        if not self.shuffled:
            return order
        if self._sorted is None or self._sorted[0] != epoch:
            self._sorted = epoch, self._bucketed(order, epoch)
        return self._sorted[1]

    def _bucketed(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        source = self.split.source
        assert isinstance(source, TextSource)
        lengths = source.encoded.lengths[self.split.indices[order]]
        steps = len(order) // self.step
        full = steps * self.step
        pools = np.arange(full) // (_POOL * self.step)
        by_length = order[:full][np.lexsort((lengths[:full], pools))]  # stable: equal lengths stay shuffled
        shuffled = random_permutations(self._key(np.array([epoch]), 4), steps)[0]
        return np.concatenate([by_length.reshape(steps, self.step)[shuffled].reshape(-1), order[full:]])
