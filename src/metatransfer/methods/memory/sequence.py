"""Base class of methods that read the support set as a sequence."""

import math
from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_count
from metatransfer.errors import UserError
from metatransfer.functional.losses import is_regression, mask_absent_classes
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.functional.random import random_permutations, stream_keys
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone

State = TypeVar("State")


class SequenceModule(EmbeddingModule[State]):
    r"""Base class of methods that read the support set as a sequence, so that their answers depend on its order.

    A subclass defines how it reads support sets in the order given (:meth:`read`) and how it answers (:meth:`answer`).
    Training uses the order of the episodes, which is random. Evaluation and ``adapt`` read every support set in several
    random orders, the same ones each time, and average the predicted **probabilities**:

    .. math:: p(y \mid x, S) = \frac1R \sum_r p(y \mid x, S_{\pi_r})

    The order carries no information, so it is integrated out. The loss of this average is at most the average loss of
    the orders. An average of scores has no such guarantee: one confident order could outvote all others. The standard
    deviation of a task's score between orders is reported as ``order_spread``.

    Args:
        backbone: the embedding of the samples.
        num_outputs: number of ways, which the code of the labels fixes.
        orders: number ``R`` of orders in evaluation, at least 2.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: no number of ways, or a single order.
    """

    order_sensitive: bool = True
    cannot_export = "it reads the support set in several random orders: adapt it, and export the predictor"

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None,
        orders: int = 4,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        if num_outputs is None:
            raise UserError(
                f"{type(self).__name__} needs num_outputs, the number of ways, since it reads labels as codes of fixed "
                "size: give it, or use data whose episodes have a number of ways."
            )
        check_count(num_outputs=num_outputs)
        if orders < 2:
            raise UserError(
                f"{type(self).__name__} depends on the order of the support set, so its evaluation needs orders of 2 "
                f"or more, but orders={orders}."
            )
        self.num_outputs: int = num_outputs
        self.orders = orders

    @abstractmethod
    def read(self, support: Tensor, labels: Tensor) -> State:
        """Reads support sets ``(T, S, E)`` with their labels ``(T, S)``, in this order."""

    @abstractmethod
    def answer(self, state: State, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, num_outputs)`` of queries ``(T, Q, E)``, each independent of the others."""

    def in_orders(self, sequence: Tensor) -> Tensor:
        """The orders of sequences ``(T, S, ...)`` that are read: ``(T * R, S, ...)``, in training themselves."""
        if self.training:
            return sequence
        keys = stream_keys(np.arange(self.orders))
        places = torch.from_numpy(random_permutations(keys, sequence.shape[1])).to(sequence.device)
        return sequence[:, places].flatten(0, 1)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> State:
        """What is read from the support sets in each of the orders."""
        if is_regression(labels):
            raise UserError(f"{type(self).__name__} learns classes, but the targets are floats: give labels.")
        return self.read(self.in_orders(support), self.in_orders(labels))

    def by_order(self, state: State, queries: Tensor) -> Tensor:
        """Logits ``(T, R, Q, num_outputs)`` of queries ``(T, Q, E)``."""
        orders = 1 if self.training else self.orders
        found = self.answer(state, queries.repeat_interleave(orders, 0))
        return found.view(len(queries), orders, *found.shape[1:])

    def predict_embeddings(self, state: State, queries: Tensor) -> Tensor:
        """Logarithms of the probabilities, averaged over the orders."""
        return _averaged(self.by_order(state, queries))

    def evaluated(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs for the queries, and how the score of each task varies between the orders."""
        shots = episode.support_y.shape[1]
        embedded = self.embed(concatenated(episode.support_x, episode.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], episode.support_y)
        by_order = self.by_order(state, embedded[:, shots:])
        own = [self.score(mask_absent_classes(one, episode.support_y), episode.query_y) for one in by_order.unbind(1)]
        outputs = mask_absent_classes(_averaged(by_order), episode.support_y)
        return outputs, {"order_spread": torch.stack(own).std(0), **self.more_scores(state, episode)}

    def more_scores(self, state: State, episode: Episode) -> dict[str, Tensor]:
        """Further scores ``(T,)`` of the tasks of an episode by name, from what was read; by default none."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """Adds the number of orders."""
        return super().protocol() | {"orders": self.orders}


def _averaged(by_order: Tensor) -> Tensor:
    """``(T, R, Q, C)`` logits to the logarithms of the mean probabilities ``(T, Q, C)``."""
    summed: Tensor = by_order.log_softmax(-1).logsumexp(1)
    return summed - math.log(by_order.shape[1])
