"""SNAIL: temporal convolutions and attention over the support set."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_count
from metatransfer.methods.memory.sequence import SequenceModule
from metatransfer.nn import Backbone, CausalAttention, CausalDense, CausalLayer, LinearHead


class SNAILModule(SequenceModule[tuple[Tensor, ...]]):
    r"""Simple neural attentive meta-learner (Mishra, Rohaninejad, Chen, Abbeel 2018, 1707.03141).

    A causal network reads the labelled support samples and then one query without a label; its last output is the
    answer:

    .. math:: z = g\bigl([f(x_1), e_{y_1}], \dots, [f(x_S), e_{y_S}], [f(x), 0]\bigr)

    The network :math:`g` alternates attention, which finds samples anywhere in the sequence, and dilated convolutions,
    which combine neighbours. No position depends on a later one, so a support set is read once, and all queries are
    asked after it in one pass.

    Args:
        backbone: the embedding ``f``.
        num_outputs: number of ways; defaults to that of the training episodes on the command line.
        length: number of samples that a block of convolutions reaches, as a rule ways times shots and one query.
        filters: features of each convolution; attention has keys and values of 1/2 and 1/4, then 2 and 1, then 4 and 2
            times as many (128 in the paper).
        orders: number of orders of a support set in evaluation, see :class:`SequenceModule`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: no number of ways, a single order, or a number out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        length: int = 32,
        filters: int = 128,
        orders: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_outputs, orders, optimizer, lr_scheduler)
        check_count(2, length=length)
        check_count(4, filters=filters)
        self.length, self.filters = length, filters
        reach = [2**step for step in range(math.ceil(math.log2(length)))]
        size, layers = backbone.out_features + self.num_outputs, list[CausalLayer]()
        for factor, dilations in ((1, reach), (4, reach), (8, ())):
            layers.append(CausalAttention(size, factor * filters // 2, factor * filters // 4))
            for dilation in dilations:
                layers.append(CausalDense(layers[-1].out_features, filters, dilation))
            size = layers[-1].out_features
        self.layers: Iterable[CausalLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = LinearHead(size, self.num_outputs)

    def read(self, support: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The inputs of all layers at the support samples, each ``(T, S, features)``."""
        inputs = [torch.cat([support, F.one_hot(labels, self.num_outputs).to(support.dtype)], -1)]
        for layer in self.layers:
            inputs.append(layer(inputs[-1]))
        return tuple(inputs[:-1])

    def answer(self, state: tuple[Tensor, ...], queries: Tensor) -> Tensor:
        """Logits of queries, each as the last element of its own sequence."""
        x = F.pad(queries, (0, self.num_outputs))
        for layer, past in zip(self.layers, state, strict=True):
            x = layer.following(past, x)
        return self.head(x)  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """Adds the reach and the width of the convolutions."""
        return super().protocol() | {"length": self.length, "filters": self.filters}
