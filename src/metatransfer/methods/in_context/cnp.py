"""Conditional neural processes."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchvision.ops import MLP  # type: ignore[import-untyped]

from metatransfer.checks import check_count
from metatransfer.functional.losses import is_regression
from metatransfer.functional.meta.prototypes import class_count, class_prototypes
from metatransfer.methods.in_context.neural_process import NeuralProcess
from metatransfer.nn import Backbone


class CNPModule(NeuralProcess[Tensor]):
    r"""Conditional neural process (Garnelo et al. 2018, 1807.01613).

    A network encodes each support point, the mean over points represents the task, and a second network decodes it at
    each query,

    .. math:: r = \frac1S\sum_i g(x_i, y_i),\qquad y \mid x \sim N\big(\mu, \sigma^2\big),\quad
              (\mu, \sigma) = h(r, x).

    In classification there is a mean :math:`r_k` of :math:`g(x_i)` over the samples of each class. The paper decodes
    all of them at once, which fixes the number of classes and their order. Here the decoder scores one class at a time,
    from :math:`g(x)`, :math:`r_k` and :math:`|g(x) - r_k|`. Standard deviations are at least 0.1, as in the authors'
    program.

    Args:
        backbone: computes the inputs :math:`x` from samples, e.g. ``RawFeatures``.
        num_targets: size of the targets of a regression; ``None`` for classification.
        hidden: width of the hidden layers and of the representation.
        layers: number of layers of each network.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number below 1.
    """

    least_deviation = 0.1

    def __init__(
        self,
        backbone: Backbone,
        num_targets: int | None = None,
        hidden: int = 128,
        layers: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_targets, optimizer, lr_scheduler)
        check_count(hidden=hidden, layers=layers)
        size, own = backbone.out_features, [hidden] * (layers - 1)
        self.encoder = MLP(size + (num_targets or 0), [*own, hidden])
        self.decoder = MLP(hidden + size if num_targets else 3 * hidden, [*own, self.output_size])

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """Representations ``(T, W, hidden)`` of the classes, or ``(T, 1, hidden)`` of a regression."""
        if is_regression(labels):
            encoded: Tensor = self.encoder(torch.cat([support, labels.to(support.dtype)], -1))
            return encoded.mean(1, keepdim=True)
        return class_prototypes(self.encoder(support), labels, class_count(labels))

    def answers(self, state: Tensor, queries: Tensor) -> Tensor:
        """Decodes each representation at each query."""
        means = state.unsqueeze(2).expand(-1, -1, queries.shape[1], -1)
        own = queries if self.num_outputs else self.encoder(queries)
        own = own.unsqueeze(1).expand(-1, state.shape[1], -1, -1)
        known = [means, own] if self.num_outputs else [means, own, (own - means).abs()]
        answers: Tensor = self.decoder(torch.cat(known, -1))
        return answers

    def protocol(self) -> dict[str, Any]:
        """Adds whether it regresses."""
        return super().protocol() | {"num_targets": self.num_outputs}
