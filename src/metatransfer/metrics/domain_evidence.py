"""Outputs of a network for source and target samples, collected over an evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metatransfer.metrics.collector import Collector


class Evidence(NamedTuple):
    """What a validator may use; it contains no label of the target.

    Attributes:
        source_logits: ``(N, C)``, of validation samples of the source.
        source_labels: ``(N,)`` int64.
        source_features: ``(N, E)``.
        target_logits: ``(M, C)``, of validation samples of the target.
        target_features: ``(M, E)``.
        train_features: ``(K, E)``, of training samples of the source, for density ratios; without them the validation
            samples are used, which makes the ratios overconfident.
    """

    source_logits: Tensor
    source_labels: Tensor
    source_features: Tensor
    target_logits: Tensor
    target_features: Tensor
    train_features: Tensor | None = None

    def on_cpu(self) -> Evidence:
        """A detached copy on the CPU, in double precision."""
        return Evidence(
            _exact(self.source_logits),
            self.source_labels.cpu(),
            _exact(self.source_features),
            _exact(self.target_logits),
            _exact(self.target_features),
            None if self.train_features is None else _exact(self.train_features),
        )

    def finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(part.isfinite().all()) for part in self if part is not None)


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


class SideEvidence(NamedTuple):
    """Outputs for the samples of one domain, in their order.

    Attributes:
        logits: ``(N, C)``.
        features: ``(N, E)``.
        labels: ``(N,)`` int64, -1 if unknown or withheld.
        number: ``(N,)`` int64.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    number: Tensor


class SideCollector(Collector):
    """Keeps logits and features of all samples of one domain, of all processes."""

    fields = SideEvidence._fields

    def update(self, logits: Tensor, features: Tensor, labels: Tensor, number: Tensor) -> None:
        """Adds a batch, see :class:`SideEvidence`."""
        self.add(logits.detach().float(), features.detach().float().flatten(1), labels, number)

    def compute(self) -> SideEvidence:
        """All samples in their order, without the duplicates that several processes may have been given."""
        found = SideEvidence(*self.collected())
        order = found.number.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = found.number[order][1:] != found.number[order][:-1]
        return SideEvidence(*(part[order[first]] for part in found))
