"""Base class of neural processes."""

from abc import abstractmethod
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributions import Normal

from metatransfer.checks import check_count
from metatransfer.functional.losses import is_regression
from metatransfer.functional.meta.prototypes import class_count, class_members
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.methods.outputs import Outputs
from metatransfer.nn import Backbone

State = TypeVar("State")


class NeuralProcess(EmbeddingModule[State]):
    """Base class of neural processes: functions that are learned from points, as a network predicts them.

    Regression targets have a mean and a standard deviation at each query, and the loss is the negative log-likelihood.
    Classes are predicted one by one, each from the same network, so that there may be any number of them.

    Args:
        backbone: computes the inputs of the network from samples.
        num_targets: size of the targets of a regression; ``None`` for classification.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Attributes:
        least_deviation: lower limit of the predicted standard deviations.
    """

    least_deviation: ClassVar[float]

    def __init__(
        self,
        backbone: Backbone,
        num_targets: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_count(num_targets=num_targets)
        self.num_outputs = num_targets

    @property
    def output_size(self) -> int:
        """Number of outputs of the network for a query: a logit, or means and standard deviations."""
        return 2 * self.num_outputs if self.num_outputs else 1

    @abstractmethod
    def answers(self, state: State, queries: Tensor) -> Tensor:
        """Outputs of the network ``(T, W, Q, output_size)`` for queries ``(T, Q, E)``; ``W`` is 1 in a regression."""

    def predict_embeddings(self, state: State, queries: Tensor) -> Outputs:
        """Logits ``(T, Q, W)``, or a normal distribution of the targets ``(T, Q, D)``."""
        found = self.answers(state, queries)
        if self.num_outputs is None:
            return found.squeeze(-1).transpose(1, 2)
        wide = torch.promote_types(found.dtype, torch.float32)
        mean, deviation = found.squeeze(1).to(wide).chunk(2, -1)
        least = self.least_deviation
        return Normal(mean, least + (1 - least) * F.softplus(deviation), validate_args=False)


def as_functions(labels: Tensor) -> Tensor:
    """Targets as functions to learn, ``(T, W, S, D)``: one in a regression, membership in each class otherwise."""
    if is_regression(labels):
        return labels.unsqueeze(1)
    return class_members(labels, class_count(labels)).transpose(1, 2).unsqueeze(-1)
