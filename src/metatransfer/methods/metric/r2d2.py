"""R2D2."""

import math

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.functional.meta.prototypes import class_count, class_members
from metatransfer.functional.meta.ridge import ridge_weights
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone


class R2D2Module(EmbeddingModule[Tensor]):
    r"""R2-D2 (Bertinetto, Henriques, Torr, Vedaldi 2019, 1805.08136): the head of a task is a ridge regression.

    The embeddings :math:`X` of the support set are regressed on the one-hot labels :math:`Y` in closed form, and the
    gradient of the query loss passes through the solution:

    .. math:: W = X^\top (XX^\top + \lambda I)^{-1} Y, \qquad z = \alpha\, f(x)^\top W + \beta

    Where there are more support samples than features, the equal form with a system of the size of the features is
    solved instead. :math:`\lambda` (by its logarithm), :math:`\alpha` and :math:`\beta` are learned in the outer loop.
    :math:`\beta` is the same for all classes, so that it moves the logits but not the probabilities.

    Ways and shots may differ between training and test.

    Args:
        backbone: the embedding ``f``.
        penalty: initial value of :math:`\lambda`.
        scale: initial value of :math:`\alpha`; :math:`\beta` starts from 0.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``penalty`` or ``scale`` is not positive.
    """

    cannot_export = (
        "it solves a linear system for the support set, which exported files cannot do: adapt it, and export the "
        "predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        penalty: float = 1.0,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(penalty=penalty, scale=scale)
        self.initial_penalty, self.initial_scale = penalty, scale
        self.log_penalty, self.scale, self.bias = (nn.Parameter(torch.empty(())) for _ in range(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the penalty, the scale and the bias."""
        nn.init.constant_(self.log_penalty, math.log(self.initial_penalty))
        nn.init.constant_(self.scale, self.initial_scale)
        nn.init.zeros_(self.bias)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The weights ``(T, E, W)`` of the regression on one-hot labels."""
        targets = class_members(labels, class_count(labels))
        return ridge_weights(support, targets.to(support.dtype), self.log_penalty.exp())

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        with torch.autocast(queries.device.type, enabled=False):
            return self.scale * (queries.to(state.dtype) @ state) + self.bias
