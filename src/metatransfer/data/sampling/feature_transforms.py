"""Fixed transforms of feature vectors that are common in domain adaptation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from metatransfer.checks import check_choice

_NORMS = {"l2": 2.0, "l1": 1.0, "max": math.inf}


class RowSum(nn.Module):
    """Divides every sample by the sum of its values, so that counts become frequencies; samples with sum 0 are kept.

    The first step of the usual protocol of Office-Caltech10's SURF features (Gong et al. 2012); z-scores follow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Divides each sample of ``x`` ``(N, *shape)`` by its sum."""
        total = x.flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))
        return x / torch.where(total == 0, torch.ones_like(total), total)


class UnitLength(nn.Module):
    """Divides every sample by its norm, like scikit-learn's ``Normalizer``; samples of norm 0 are kept.

    Args:
        norm: ``"l2"`` (Euclidean length), ``"l1"`` (sum of absolute values) or ``"max"`` (largest absolute value).

    Raises:
        UserError: an unknown norm.
    """

    def __init__(self, norm: Literal["l2", "l1", "max"] = "l2") -> None:
        super().__init__()
        check_choice("norm", norm, tuple(_NORMS))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Divides each sample of ``x`` ``(N, *shape)`` by its norm."""
        size = torch.linalg.vector_norm(x.flatten(1), ord=_NORMS[self.norm], dim=1).view(-1, *[1] * (x.dim() - 1))
        return x / torch.where(size == 0, torch.ones_like(size), size)

    def __repr__(self) -> str:
        return f"UnitLength('{self.norm}')"


class Standardize(nn.Module):
    """Z-scores: ``(x - mean) / deviation``, feature by feature; images channel by channel.

    Features are the first axis of a sample; ``mean`` and ``deviation`` are ``(D,)`` float64. The deviation is that of
    the population (divided by N). A feature that is constant in the fitted samples becomes 0.

    Attributes:
        constant: number of constant features.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.constant = int((deviation == 0).sum())
        self._held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, chunks: Iterable[Tensor]) -> Standardize:
        """Fits the statistics in float64 in one pass (Chan, Golub and LeVeque 1979)."""
        count, mean, squares = 0, torch.zeros(0), torch.zeros(0)
        low, high = torch.zeros(0), torch.zeros(0)
        for chunk in chunks:
            values = chunk.double().transpose(0, 1).flatten(1)  # (D, n), where pixels of images count as samples
            own, size = values.mean(1), values.shape[1]
            own_squares = (values - own[:, None]).square().sum(1)
            if not count:
                mean, squares, low, high = own, own_squares, values.amin(1), values.amax(1)
            else:
                shift = own - mean
                mean = mean + shift * (size / (count + size))
                squares = squares + own_squares + shift.square() * (count * size / (count + size))
                low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
            count += size
        # rounding may give a constant feature a tiny deviation, which would blow up other values
        deviation = torch.where(low == high, torch.zeros_like(squares), (squares / max(1, count)).sqrt())
        return cls(mean, deviation)

    def __repr__(self) -> str:
        return f"Standardize({len(self.mean)} features)"

    def forward(self, x: Tensor) -> Tensor:
        """Standardises."""
        kind = x.device, x.dtype
        if kind not in self._held:  # a copy for each device: worker processes cannot read an accelerator's
            scale = torch.where(self.deviation == 0, self.deviation, 1 / self.deviation)
            self._held[kind] = self.mean.to(x.device, x.dtype), scale.to(x.device, x.dtype)
        mean, scale = (one.view(-1, *[1] * (x.dim() - 2)) for one in self._held[kind])
        return (x - mean) * scale
