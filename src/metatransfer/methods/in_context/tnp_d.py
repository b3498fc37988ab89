"""Diagonal transformer neural processes."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchvision.ops import MLP  # type: ignore[import-untyped]

from metatransfer.methods.in_context.neural_process import NeuralProcess, as_functions
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import ContextTransformer


class TNPDModule(NeuralProcess[list[Tensor]]):
    r"""Diagonal transformer neural process, TNP-D (Nguyen, Grover 2022, 2207.04179).

    A support point is the token :math:`g(x_i, y_i)`, and a query the token :math:`g(x, 0)`, of a transformer without
    positions. Support points attend to each other, and queries to the support points; the distributions of the queries
    are independent of each other,

    .. math:: y \mid x \sim N\big(\mu, \sigma^2\big),\qquad (\mu, \sigma) = h\big(g(x, 0);\ \{g(x_i, y_i)\}_i\big).

    In classification the network predicts a logit for each class, with membership in the class as :math:`y_i`.

    Unlike in the authors' program, layers are normalised before attention, and standard deviations are at least 0.001.

    Args:
        backbone: computes the inputs :math:`x` from samples, e.g. ``RawFeatures``.
        num_targets: size of the targets of a regression; ``None`` for classification.
        width: size of a token.
        layers: number of layers of the transformer.
        heads: number of attention heads.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number below 1, or a width that the heads do not divide.
    """

    least_deviation = 1e-3

    def __init__(
        self,
        backbone: Backbone,
        num_targets: int | None = None,
        width: int = 64,
        layers: int = 6,
        heads: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_targets, optimizer, lr_scheduler)
        self.reader = ContextTransformer(width, layers, heads)
        self.embedder = MLP(backbone.out_features + (num_targets or 1), [width] * 4)
        self.readout = MLP(width, [2 * width, self.output_size])

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> list[Tensor]:
        """Reads the support sets."""
        return self.reader.read(self._tokens(support, as_functions(labels)))

    def answers(self, state: list[Tensor], queries: Tensor) -> Tensor:
        """Attends to the support sets."""
        ways = state[0].shape[1]
        unknown = queries.new_zeros(len(queries), ways, queries.shape[1], self.num_outputs or 1)
        answers: Tensor = self.readout(self.reader.answer(state, self._tokens(queries, unknown)))
        return answers

    def _tokens(self, x: Tensor, y: Tensor) -> Tensor:
        """``(T, W, N, width)`` of points ``(T, N, E)`` and their values ``(T, W, N, D)``."""
        x = x.unsqueeze(1).expand(-1, y.shape[1], -1, -1)
        tokens: Tensor = self.embedder(torch.cat([x, y.to(x.dtype)], -1))
        return tokens

    def protocol(self) -> dict[str, Any]:
        """Adds whether it regresses."""
        return super().protocol() | {"num_targets": self.num_outputs}
