"""Batches of labelled samples, and of samples to label."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.batches import Inputs, LabelledBatch, UnlabelledBatch
from metatransfer.data.sampling.augment import Changes
from metatransfer.data.sampling.loader import Sampler, Stream
from metatransfer.data.sources import SPLITS, Source, read_samples
from metatransfer.errors import UserError, explained
from metatransfer.functional.random import random_permutations, random_words, stream_keys

Balance = Literal["none", "oversample"]
_POOL = 50  # steps within which samples are sorted by length


class LabelledSampler(Sampler[LabelledBatch]):
    """Labelled batches, by the position of their samples in the epochs.

    Samples of different lengths, such as texts, are batched with samples of similar lengths to reduce padding: every
    epoch is shuffled, split into pools of 50 steps, and sorted by length within each pool; then the steps are shuffled.
    The samples beyond the last full step are chosen before sorting, so that all lengths are dropped equally often.

    In ``shuffled`` epochs, ``balance="oversample"`` draws every class equally often, with repetition; ``mix`` mixes the
    samples of a batch and their labels; ``step`` is the size of a step over all processes, 0 to not sort by length.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        changes: Changes | None = None,
        *,
        shuffled: bool = False,
        balance: Balance = "none",
        mix: nn.Module | None = None,
        step: int = 0,
    ) -> None:
        self.source, self.seed, self.changes, self.in_memory = source, seed, changes or Changes(), source.in_memory
        self.shuffled, self.balance, self.mix, self.step = shuffled, balance, mix, step
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def _key(self, *parts: Any) -> NDArray[np.uint64]:  # noqa: ANN401
        keys: NDArray[np.uint64] = stream_keys(self.seed, SPLITS.index("train"), Stream.CLASS_BATCHES, *parts)
        return keys

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the samples in an epoch."""
        if not self.shuffled:
            return np.arange(len(self))
        if epoch != self._epoch:
            order = random_permutations(self._key(np.array([epoch])), len(self))[0]
            order = self._balanced(order, epoch) if self.balance != "none" else order
            lengths = self.source.lengths(order) if self.step else None
            self._epoch, self._order = epoch, order if lengths is None else self._bucketed(order, lengths, epoch)
        return self._order

    def _balanced(self, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """An epoch of the same length, with equally many samples of every class (up to one), each repeated in turn."""
        labels = self.source.labels[order]
        classes = np.flatnonzero(self.source.sizes)
        wanted = np.arange(len(order)) % len(classes)
        found = np.empty(len(order), np.int64)
        for place, label in enumerate(classes):
            rows = np.flatnonzero(wanted == place)
            found[rows] = np.resize(order[labels == label], len(rows))
        balanced: NDArray[np.int64] = found[random_permutations(self._key(np.array([epoch]), 2), len(order))[0]]
        return balanced

    def _bucketed(self, order: NDArray[np.int64], lengths: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        steps = len(order) // self.step
        full = steps * self.step
        pools = np.arange(full) // (_POOL * self.step)
        by_length = order[:full][np.lexsort((lengths[:full], pools))]  # stable: equal lengths stay shuffled
        shuffled = random_permutations(self._key(np.array([epoch]), 4), steps)[0]
        return np.concatenate([by_length.reshape(steps, self.step)[shuffled].reshape(-1), order[full:]])

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> LabelledBatch:
        """A labelled batch."""
        epoch = int(indices[0]) // len(self)
        numbers = self.order(epoch)[indices - epoch * len(self)]
        x = read_samples(self.source, torch.from_numpy(numbers), device)
        y = torch.from_numpy(self.source.labels[numbers]).to(device, non_blocking=True)
        x = self.changes.each(x, lambda: self._key(indices, 1))
        if self.mix is not None:
            x, y = self._mixed(x, y, indices)
        return LabelledBatch(x, y, torch.from_numpy(numbers).to(device, non_blocking=True))

    def _mixed(self, x: Inputs, y: Tensor, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Applies ``mix`` with random numbers that depend on the position of the batch."""
        if not isinstance(x, Tensor):
            raise UserError("mix is for images, but these samples are texts: leave it out.")
        seed = int(random_words(self._key(indices[:1], 3), 1)[0, 0] >> np.uint64(1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            problem = f"mix, {self.mix}, fails on samples of shape {tuple(x.shape)}"
            with explained(problem, "MixUp and CutMix need images (N, C, H, W); leave it out"):
                one_hot = nn.functional.one_hot(y, len(self.source.class_names)).to(x.dtype)
                mixed: tuple[Tensor, Tensor] = self.mix(x, one_hot)  # type: ignore[misc]
        return mixed


class ByLength(LabelledSampler):
    """The longest samples first, so that running out of memory shows at once."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Samples by decreasing length; unsorted if all have the same shape."""
        lengths = self.source.lengths(np.arange(len(self)))
        return super().order(epoch) if lengths is None else (-lengths).argsort(kind="stable")


class UnlabelledSampler(Sampler[UnlabelledBatch]):
    """Samples without labels, in order, with a name for each."""

    def __init__(self, source: Source, names: tuple[str, ...], changes: Changes) -> None:
        self.source, self.names, self.changes = source, names, changes

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> UnlabelledBatch:
        """Samples by their position."""
        x = self.changes.each(
            read_samples(self.source, torch.from_numpy(indices), device), lambda: stream_keys(indices)
        )
        return UnlabelledBatch(x, tuple(self.names[index] for index in indices.tolist()))
