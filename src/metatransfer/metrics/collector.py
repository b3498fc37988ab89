"""Tensors of all samples of an evaluation, and the outputs for source and target samples."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric


class Collector(Metric):
    """Keeps tensors ``(N, ...)`` for all samples, of all processes.

    Attributes:
        fields: names of the tensors.
    """

    full_state_update = False
    fields: ClassVar[tuple[str, ...]]

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - torchmetrics' own signature
        super().__init__(**kwargs)
        for name in self.fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def add(self, *values: Tensor) -> None:
        """Adds a batch, in the order of the fields."""
        for name, value in zip(self.fields, values, strict=True):
            getattr(self, name).append(value)

    def collected(self) -> list[Tensor]:
        """All batches, in the order of the fields."""
        parts = [getattr(self, name) for name in self.fields]
        return [torch.cat(part) if isinstance(part, list) else part for part in parts]


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

    def on_cpu(self) -> "Evidence":
        """A detached copy on the CPU, in double precision."""
        exact = (None if part is None else part.detach().cpu().double() for part in self)
        return Evidence(*exact)._replace(source_labels=self.source_labels.cpu())  # type: ignore[arg-type]

    def finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(part.isfinite().all()) for part in self if part is not None)


class SideEvidence(NamedTuple):
    """Logits ``(N, C)``, features ``(N, E)``, labels ``(N,)`` (-1 if unknown or withheld) and numbers of samples."""

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
        first = torch.from_numpy(np.unique(found.number.cpu().numpy(), return_index=True)[1])
        return SideEvidence(*(part[first.to(part.device)] for part in found))
