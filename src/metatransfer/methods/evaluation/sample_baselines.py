"""Reference classifiers of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.data_info import DataInfo
from metatransfer.methods.evaluation.base import Baseline

MOST_FREQUENT = "most frequent class"
_NEIGHBOUR_LIMIT = 2**26  # numbers in all training samples: beyond, searching neighbours costs more than it tells


def sample_baselines(info: DataInfo, samples: Callable[[], Iterable[Any]], prefix: str = "") -> dict[str, Baseline]:
    """The most frequent class, and the class of the nearest training sample unless there is too much data."""
    found: dict[str, Baseline] = {MOST_FREQUENT: MostFrequentClass(info.class_counts)}
    shape, count = info.sample_shape, sum(info.class_counts)
    # texts have no shape, and no distance
    if shape and count * torch.Size(shape).numel() <= _NEIGHBOUR_LIMIT:
        found[f"{prefix}{'pixel 1-NN' if len(shape) == 3 else '1-NN'}"] = NearestSample(samples, len(info.class_counts))
    return found


class MostFrequentClass:
    """Predicts the class with the most training samples.

    Args:
        counts: number of training samples by class.
    """

    def __init__(self, counts: Iterable[int]) -> None:
        self.counts = torch.tensor(list(counts))

    def __call__(self, batch: Any) -> Tensor:  # noqa: ANN401
        """One-hot predictions ``(N, C)`` for a batch."""
        row = F.one_hot(self.counts.argmax(), len(self.counts)).float().to(batch.y.device)
        return row.expand(len(batch.y), -1)


class NearestSample:
    """Predicts the class of the nearest training sample by Euclidean distance.

    Args:
        samples: returns the training samples in batches with ``x`` and ``y``.
        num_classes: number of classes.
    """

    def __init__(self, samples: Callable[[], Iterable[Any]], num_classes: int) -> None:
        self.samples, self.num_classes = samples, num_classes
        self.known: tuple[Tensor, Tensor] | None = None

    def __call__(self, batch: Any) -> Tensor:  # noqa: ANN401
        """One-hot predictions ``(N, C)`` for a batch."""
        if self.known is None:
            parts = [(part.x.flatten(1), part.y) for part in self.samples()]
            self.known = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        x, y = (tensor.to(batch.y.device) for tensor in self.known)
        nearest = torch.cdist(batch.x.flatten(1).to(x.dtype), x).argmin(1)
        return F.one_hot(y[nearest], self.num_classes).float()
