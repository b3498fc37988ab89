"""Training batches of domain adaptation and the outputs for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metatransfer.batches import DomainBatch, LabelledBatch
from metatransfer.checks import check_labelled_batch
from metatransfer.errors import UserError
from metatransfer.methods.classifier import SampleClassifier
from metatransfer.methods.evaluation.on_target import REMEDY


class Pair(NamedTuple):
    """Outputs of a network for a training batch.

    Attributes:
        source: ``(N, E)`` features.
        target: ``(M, E)`` features.
        source_logits: ``(N, C)``.
        target_logits: ``(M, C)``.
        batch: the batch.
    """

    source: Tensor
    target: Tensor
    source_logits: Tensor
    target_logits: Tensor
    batch: DomainBatch


def check_pair(module: SampleClassifier, batch: object) -> None:
    """Raises an error unless a training batch fits the method."""
    if not isinstance(batch, DomainBatch):
        raise UserError(
            f"{type(module).__name__} learns from pairs of source and target samples, but the data module serves "
            f"{type(batch).__name__}: {REMEDY}."
        )
    if batch.source_x.shape[1:] != batch.target_x.shape[1:]:
        raise UserError(
            f"samples of the source have shape {tuple(batch.source_x.shape[1:])}, those of the target "
            f"{tuple(batch.target_x.shape[1:])}: bring both to one shape."
        )
    module.check_samples(batch.source_x)
    module.check_samples(batch.target_x)
    check_labelled_batch(LabelledBatch(batch.source_x, batch.source_y), module.num_classes)


def gradient_ratio(loss: Tensor, added: Tensor, source: Tensor, target: Tensor) -> Tensor | None:
    """The norm of an added loss's gradient at the features, relative to that of the label loss."""
    norms = []
    for value in (loss, added) if source.requires_grad else ():
        if not value.requires_grad:
            return None
        found = torch.autograd.grad(value, [source, target], retain_graph=True, allow_unused=True)
        parts = [part.float().pow(2).sum() for part in found if part is not None]
        if not parts:
            return None
        norms.append(torch.stack(parts).sum().sqrt())
    return norms[1] / norms[0].clamp_min(1e-12) if norms else None
