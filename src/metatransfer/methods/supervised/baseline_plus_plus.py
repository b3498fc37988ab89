"""Baseline and Baseline++."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.checks import check_count, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.meta.prototypes import class_count, cosine_scores
from metatransfer.functional.meta.task_heads import fitted_cosine_heads, fitted_linear_heads
from metatransfer.methods.supervised.pretrain import PretrainModule
from metatransfer.nn import Backbone, CosineHead, Head, LinearHead


class BaselinePlusPlusModule(PretrainModule):
    r"""A classifier of all training classes, with a new output layer for each task (Chen et al. 2019, 1904.04232).

    ``head=CosineHead`` is Baseline++, ``head=LinearHead`` is Baseline. Training is that of
    :class:`~metatransfer.PretrainModule`. In a test the features are frozen, and an output layer of the same kind is
    fitted to each support set. The paper draws its initial weights and its mini-batches of four samples at random; here
    all classes start from the same weights (0, or for cosines the mean of the support set), and each step uses the
    whole support set, so that a prediction depends neither on a seed nor on the order of samples and classes.

    Args:
        backbone: the features.
        num_classes: number of training classes; on the command line taken from the data.
        head: creates the output layer of the training: ``CosineHead`` or ``LinearHead``.
        steps: number of gradient steps of a task's output layer (100 in the paper).
        lr: learning rate of these steps (0.01 in the paper's code).
        optimizer: creates the optimiser of the training.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``num_classes`` is missing, another kind of head, or a number that is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = CosineHead,
        steps: int = 100,
        lr: float = 0.01,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, head, optimizer=optimizer, lr_scheduler=lr_scheduler)
        check_count(steps=steps)
        check_positive(lr=lr)
        if not isinstance(self.head, CosineHead | LinearHead):
            raise UserError(
                "BaselinePlusPlusModule fits cosine and linear heads to tasks, but head creates a "
                f"{type(self.head).__name__}: use CosineHead or LinearHead."
            )
        self.head_steps, self.head_lr = steps, lr

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The output layers ``(T, W, E + 1)``: the weights of each class, and its bias or the factor of its cosine."""
        with torch.autocast(support.device.type, enabled=False):
            support = support.to(torch.promote_types(support.dtype, torch.float32))
            fit = fitted_cosine_heads if isinstance(self.head, CosineHead) else fitted_linear_heads
            return torch.cat(fit(support, labels, class_count(labels), self.head_steps, self.head_lr), -1)

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        weight, other = state[..., :-1], state[..., -1].unsqueeze(1)
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.to(state.dtype)
            if isinstance(self.head, CosineHead):
                return other * cosine_scores(queries, weight)
            return queries @ weight.mT + other

    def protocol(self) -> dict[str, Any]:
        """Adds how the output layers of tasks are fitted."""
        card = super().protocol()
        distance = "cosine" if isinstance(self.head, CosineHead) else "linear"
        return card | {"distance": distance, "head_steps": self.head_steps, "head_lr": self.head_lr}
