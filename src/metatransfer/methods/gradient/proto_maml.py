"""MAML that starts from prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.functional.meta.batching import Batching, over_tasks
from metatransfer.functional.meta.prototypes import class_prototypes
from metatransfer.functional.meta.stateless import BatchNormPolicy, Forward
from metatransfer.functional.meta.update_rules import Params
from metatransfer.methods.gradient.base import InnerLoopModule
from metatransfer.nn import Backbone

WEIGHT, BIAS = "head.weight", "head.bias"


class ProtoMAMLModule(InnerLoopModule):
    r"""Proto-MAML (Triantafillou et al. 2020, 1903.03096, section 3.4): each task's head starts from its prototypes.

    The squared Euclidean score of a prototypical network is linear in the features, up to what all classes share, so
    its prototypes :math:`c_k` are an output layer, which then adapts with the rest:

    .. math:: -\lVert f(x)-c_k\rVert^2 + \lVert f(x)\rVert^2 = w_k^\top f(x) + b_k, \qquad
              w_k = 2c_k,\quad b_k = -\lVert c_k\rVert^2

    With no inner step it is a prototypical network. The outer gradient goes through the prototypes too. It takes any
    number of ways and, having no prototypes of numbers, no regression.

    Args:
        backbone: features.
        inner_steps: as in :class:`MAMLModule`.
        inner_lr: as in :class:`MAMLModule`; squared distances ask for smaller rates than a fresh head does.
        train_inner_steps: as in :class:`MAMLModule`.
        train_inner_lr: as in :class:`MAMLModule`.
        first_order: as in :class:`MAMLModule`; the prototypes are learned through all the same.
        batch_norm: as in :class:`MAMLModule`.
        batching: as in :class:`MAMLModule`.
        chunk_size: as in :class:`MAMLModule`.
        checkpoint: as in :class:`MAMLModule`.
        max_inner_norm: as in :class:`MAMLModule`.
        optimizer: makes the outer optimiser.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        inner_steps: int = 1,
        inner_lr: float = 0.1,
        train_inner_steps: int | None = None,
        train_inner_lr: float | None = None,
        first_order: bool = False,
        batch_norm: BatchNormPolicy = "transductive",
        batching: Literal["auto"] | Batching = "auto",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        max_inner_norm: float | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            {"backbone": backbone}, inner_steps, inner_lr, train_inner_steps, train_inner_lr, first_order, batch_norm,
            batching, chunk_size, checkpoint, False, max_inner_norm, optimizer, lr_scheduler,
        )  # fmt: skip

    def task_parameters(self, support_x: Tensor, support_y: Tensor) -> Params:
        """The head that scores as the prototypes do: weights ``(T, W, E)`` and biases ``(T, W)``."""
        features = super()._forward(support_x)

        def embed(x: Tensor) -> Tensor:
            return features({}, x)

        embedded = over_tasks(embed, support_x, batching=self._batching(support_x), chunk_size=self.chunk_size)
        ways = int(support_y.max()) + 1
        # squared distances overflow half precision, and the inner loop is one of float32
        prototypes = class_prototypes(embedded.to(torch.promote_types(embedded.dtype, torch.float32)), support_y, ways)
        present = F.one_hot(support_y, ways).any(1)
        # a class that this task does not have is never the answer
        biases = torch.where(present, -prototypes.square().sum(-1), torch.finfo(prototypes.dtype).min)
        return {WEIGHT: 2 * prototypes, BIAS: biases}

    def _forward(self, x: Tensor) -> Forward:
        features = super()._forward(x)

        def forward(params: Mapping[str, Tensor], x: Tensor, statistics_rows: int | None = None) -> Tensor:
            of_backbone = {name: value for name, value in params.items() if name not in (WEIGHT, BIAS)}
            return F.linear(features(of_backbone, x, statistics_rows), params[WEIGHT], params[BIAS])

        return forward
