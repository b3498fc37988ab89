"""The copy task: sequences of random bits to be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from metatransfer.batches import SequenceBatch
from metatransfer.checks import check_count, check_seed
from metatransfer.data.sampling.loader import BatchLoader, Place, Sampler
from metatransfer.data.sources import SPLITS
from metatransfer.data_info import DataInfo
from metatransfer.errors import UserError
from metatransfer.functional.random import random_uniforms, random_words, stream_keys


@dataclass(frozen=True)
class CopySampler(Sampler[SequenceBatch]):
    """Draws batches by their number; all sequences of a batch have one length, drawn from ``lengths``."""

    num_bits: int
    lengths: tuple[int, int]
    batch_size: int
    seed: int
    split: str

    def batch(self, indices: NDArray[np.int64], device: torch.device) -> SequenceBatch:
        """The batch with the one number that is given."""
        keys = stream_keys(self.seed, SPLITS.index(self.split), indices)
        low, high = self.lengths
        length = low + int(random_words(keys, 1)[0, 0] % np.uint64(high - low + 1))
        shape = (self.batch_size, length, self.num_bits)
        uniform = random_uniforms(keys, self.batch_size * length * self.num_bits, start=1)
        bits = torch.from_numpy(uniform >= 0.5).to(device).float().view(shape)
        x = bits.new_zeros(self.batch_size, 2 * length + 1, self.num_bits + 1)
        x[:, :length, :-1] = bits
        x[:, length, -1] = 1
        return SequenceBatch(x, bits)


class CopyTask(LightningDataModule):
    """Serves the copy task of neural Turing machines (Graves, Wayne, Danihelka 2014, 1410.5401).

    A sequence of random bits is followed by a mark, on a channel of its own, and by zeros, during which the bits are to
    be repeated. Validation and test have longer sequences than training: only who has learned to copy, rather than the
    lengths that were trained, can repeat them. Batches are a pure function of (seed, split, index)::

        data:
          class_path: CopyTask
          init_args: {lengths: [1, 6], eval_length: 12}

    Args:
        num_bits: bits of a position.
        lengths: smallest and largest length in training.
        eval_length: length in validation and test; twice the largest one by default.
        batch_size: sequences of a batch, which have the same length.
        batches: number of training batches in an epoch.
        eval_batches: number of validation batches, and of test batches.
        seed: seed of the bits and lengths.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        num_bits: int = 8,
        lengths: Sequence[int] = (1, 20),
        eval_length: int | None = None,
        batch_size: int = 16,
        batches: int = 500,
        eval_batches: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
            raise UserError(f"lengths must be the smallest and the largest length, from 1 on, but is {list(lengths)}.")
        counts = {"num_bits": num_bits, "eval_length": eval_length, "batch_size": batch_size}
        check_count(**counts, batches=batches, eval_batches=eval_batches)
        check_seed(seed=seed)
        self.num_bits, self.batch_size, self.seed = num_bits, batch_size, seed
        self.longest = eval_length or 2 * lengths[1]
        self.lengths = {"train": (lengths[0], lengths[1])} | dict.fromkeys(("val", "test"), (self.longest,) * 2)
        self.batches = {"train": batches, "val": eval_batches, "test": eval_batches}

    def info(self) -> DataInfo:
        """The description of the data."""
        return DataInfo(batch=SequenceBatch, num_targets=self.num_bits)

    def protocol(self) -> dict[str, Any]:
        """What to report with every result on this data."""
        return {
            "data": "CopyTask",
            "num_bits": self.num_bits,
            "eval_length": self.longest,
            "train_batches": {"lengths": list(self.lengths["train"]), "batch_size": self.batch_size},
            "seed": self.seed,
        }

    def _loader(self, split: str) -> BatchLoader[SequenceBatch]:
        sampler = CopySampler(self.num_bits, self.lengths[split], self.batch_size, self.seed, split)
        place = Place.of(self.trainer, training=split == "train")
        return BatchLoader(sampler, self.batches[split], 1, drop_last=split == "train", place=place)

    def train_dataloader(self) -> BatchLoader[SequenceBatch]:
        """Training batches, new ones in every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> BatchLoader[SequenceBatch]:
        """The fixed validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader[SequenceBatch]:
        """The fixed test batches."""
        return self._loader("test")
