"""Proto-MAML."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Inputs
from metatransfer.functional.meta import BatchNormPolicy, Forward, Params, class_prototypes, over_tasks
from metatransfer.functional.meta.prototypes import class_count
from metatransfer.methods.gradient.base import InnerLoopModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone

INNER = InnerLoop(steps=1, lr=0.1)
WEIGHT, BIAS = "head.weight", "head.bias"


class ProtoMAMLModule(InnerLoopModule):
    r"""Proto-MAML (Triantafillou et al. 2020, 1903.03096, section 3.4): heads start from prototypes.

    Up to a term shared by all classes, the scores of a prototypical network are linear in the features, so the
    prototypes :math:`c_k` define an output layer, which then adapts with the rest:

    .. math:: -\lVert f(x)-c_k\rVert^2 + \lVert f(x)\rVert^2 = w_k^\top f(x) + b_k, \qquad
              w_k = 2c_k,\quad b_k = -\lVert c_k\rVert^2

    Without inner steps it is a prototypical network. The outer gradient passes through the prototypes. It works with
    any number of ways, but not for regression. The other arguments and the errors are those of
    :class:`MAMLModule`.

    Args:
        backbone: the network :math:`f`.
        inner: the gradient steps on a support set; squared distances need smaller rates than a new head. The prototypes
            are differentiated also with ``first_order``.
        execution: how the tasks of a meta-batch are computed; ``compile`` is not available.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        inner: InnerLoop = INNER,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_unused("ProtoMAMLModule", "its heads depend on the labels", **{"execution.compile": execution.compile})
        super().__init__({"backbone": backbone}, inner, batch_norm, execution, optimizer, lr_scheduler)

    def task_parameters(self, support_x: Inputs, support_y: Tensor) -> Params:
        """The head given by the prototypes: weights ``(T, W, E)`` and biases ``(T, W)``."""
        features, way = super()._forward(support_x), self.execution.batching_for(self.network, support_x)

        def embed(x: Inputs) -> Tensor:
            return features({}, x)  # type: ignore[no-any-return]

        embedded = over_tasks(embed, support_x, batching=way, chunk_size=self.execution.chunk_size)
        ways = class_count(support_y)
        # squared distances overflow half precision
        prototypes = class_prototypes(embedded.to(torch.promote_types(embedded.dtype, torch.float32)), support_y, ways)
        present = F.one_hot(support_y, ways).any(1)
        # classes missing from the task are never predicted
        biases = torch.where(present, -prototypes.square().sum(-1), torch.finfo(prototypes.dtype).min)
        return {WEIGHT: 2 * prototypes, BIAS: biases}

    def _forward(self, x: Inputs) -> Forward:
        features = super()._forward(x)

        def forward(params: Mapping[str, Tensor], x: Inputs, statistics_rows: int | None = None) -> Tensor:
            of_backbone = {name: value for name, value in params.items() if name not in (WEIGHT, BIAS)}
            return F.linear(features(of_backbone, x, statistics_rows), params[WEIGHT], params[BIAS])

        return forward
