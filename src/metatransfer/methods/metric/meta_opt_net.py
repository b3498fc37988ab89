"""MetaOptNet."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_positive
from metatransfer.functional.meta.prototypes import class_count
from metatransfer.functional.meta.svm import svm_dual
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone


class MetaOptNetModule(EmbeddingModule[Tensor]):
    r"""MetaOptNet (Lee, Maji, Ravichandran, Soatto 2019, 1904.03758): the head of a task is a support vector machine.

    The embeddings of the support set train a multi-class linear SVM (Crammer, Singer 2001) without an intercept, and
    the gradient of the query loss passes through its solution:

    .. math:: W = \arg\min_W \frac12\lVert W\rVert^2 + C\sum_n \max_k\bigl(1 - [k = y_n] + (w_k - w_{y_n})^\top
              f(x_n)\bigr), \qquad z_k = s\, w_k^\top f(x)

    The quadratic programs of all tasks are solved at once, see :func:`~metatransfer.functional.svm_dual`, where the
    authors' code stops after 15 steps and adds 1 to the diagonal of the kernel. The scale :math:`s` is learned in the
    outer loop. Ways and shots may differ between training and test.

    Args:
        backbone: the embedding ``f``.
        strength: :math:`C`, how much margin errors cost (0.1 in the paper).
        scale: initial value of :math:`s`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``strength`` or ``scale`` is not positive.
    """

    cannot_export = (
        "it solves a quadratic program for the support set, which exported files cannot do: adapt it, and export the "
        "predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        strength: float = 0.1,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(strength=strength, scale=scale)
        self.strength, self.initial_scale = strength, scale
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def reset_parameters(self) -> None:
        """Resets the scale."""
        nn.init.constant_(self.scale, self.initial_scale)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The weights ``(T, W, E)`` of the machines, in float32 or better."""
        alpha = svm_dual(support, labels, class_count(labels), self.strength)
        with torch.autocast(support.device.type, enabled=False):
            return alpha.mT @ support.to(alpha.dtype)

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        with torch.autocast(queries.device.type, enabled=False):
            return self.scale * (queries.to(state.dtype) @ state.mT)

    def protocol(self) -> dict[str, Any]:
        """Adds the strength."""
        return super().protocol() | {"svm_strength": self.strength}
