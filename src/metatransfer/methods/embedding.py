"""Base classes of methods that learn tasks from embeddings, in any order or in several."""

import math
from abc import abstractmethod
from typing import Any, Self, TypeVar

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode, Inputs
from metatransfer.errors import UserError
from metatransfer.functional.losses import is_regression, mask_absent_classes
from metatransfer.functional.meta.inputs import concatenated, embed_tasks
from metatransfer.functional.meta.stateless import batch_norm_layers
from metatransfer.functional.random import random_permutations, stream_keys
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.outputs import Outputs
from metatransfer.nn import Backbone

State = TypeVar("State")


class EmbeddingModule(EpisodicModule[State]):
    """Base class of methods that learn tasks from the embeddings :math:`f(x)` of their samples.

    A subclass defines how it learns from the embeddings of support sets (:meth:`fit_embeddings`) and how it predicts
    from those of the queries (:meth:`predict_embeddings`). All samples of a meta-batch are embedded in one pass, so
    that in training support and queries share their BatchNorm statistics.

    Args:
        backbone: the embedding ``f``.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.
    """

    freeze_backbone = False

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.backbone = backbone

    @abstractmethod
    def fit_embeddings(self, support: Tensor, labels: Tensor) -> State:
        """Learns ``T`` tasks.

        Args:
            support: embeddings ``(T, S, E)``.
            labels: ``(T, S)`` int64 or ``(T, S, D)`` float.
        """

    @abstractmethod
    def predict_embeddings(self, state: State, queries: Tensor) -> Outputs:
        """Outputs for query embeddings ``(T, Q, E)``, as of :meth:`predict_tasks`."""

    def train(self, mode: bool = True) -> Self:
        """Keeps a frozen backbone in evaluation mode, so that its BatchNorm layers keep their statistics."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def embed(self, x: Inputs) -> Tensor:
        """Embeddings ``(T, N, E)`` of samples ``(T, N, *shape)`` or texts."""
        return embed_tasks(self.backbone, x)

    def fit_tasks(self, support_x: Inputs, support_y: Tensor) -> State:
        """Learns from embedded support sets."""
        return self.fit_embeddings(self.embed(support_x), support_y)

    def predict_tasks(self, state: State, query_x: Inputs) -> Outputs:
        """Outputs for the queries."""
        return self.predict_embeddings(state, self.embed(query_x))

    def forward(self, episode: Episode) -> Outputs:
        """Outputs for the queries.

        In evaluation the result equals that of :meth:`fit_tasks` and :meth:`predict_tasks`.
        """
        shots = episode.support_y.shape[1]
        embedded = self.embed(concatenated(episode.support_x, episode.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], episode.support_y)
        return mask_absent_classes(self.predict_embeddings(state, embedded[:, shots:]), episode.support_y)

    def protocol(self) -> dict[str, Any]:
        """Adds which BatchNorm statistics are used in evaluation."""
        return super().protocol() | {"batch_norm": "running" if batch_norm_layers(self.backbone) else "none"}


class OrderedModule(EmbeddingModule[State]):
    r"""Base class of methods whose answers may depend on the order of the support set.

    A subclass defines how it reads support sets in the order given (:meth:`read`) and how it answers (:meth:`answer`).
    Training uses the order of the episodes, which is random. If ``order_sensitive`` is true, evaluation and ``adapt``
    read every support set in several random orders, the same ones each time, and average the predicted
    **probabilities**:

    .. math:: p(y \mid x, S) = \frac1R \sum_r p(y \mid x, S_{\pi_r})

    The order carries no information, so it is integrated out. The loss of this average is at most the average loss of
    the orders. An average of scores has no such guarantee: one confident order could outvote all others. The standard
    deviation of a task's score between orders is reported as ``order_spread``.

    Args:
        backbone: the embedding of the samples.
        orders: number ``R`` of orders in evaluation, at least 2 if ``order_sensitive`` is true.
        order_sensitive: whether the answers depend on the order.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a single order.
    """

    def __init__(
        self,
        backbone: Backbone,
        orders: int = 4,
        order_sensitive: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        if order_sensitive and orders < 2:
            raise UserError(
                f"{type(self).__name__} depends on the order of the support set, so its evaluation needs orders of 2 "
                f"or more, but orders={orders}."
            )
        self.orders, self.order_sensitive = orders, order_sensitive
        if order_sensitive:
            self.cannot_export = "it reads the support set in several random orders: adapt it, and export the predictor"

    @abstractmethod
    def read(self, support: Tensor, labels: Tensor) -> State:
        """Reads support sets ``(T, S, E)`` with their labels ``(T, S)``, in this order."""

    @abstractmethod
    def answer(self, state: State, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)`` of queries ``(T, Q, E)``, each independent of the others."""

    @property
    def _orders_now(self) -> int:
        return self.orders if self.order_sensitive and not self.training else 1

    def places(self, shots: int) -> Tensor:
        """The orders of support sets of a size: ``(R, shots)`` int64, which sample is read at each place."""
        return torch.from_numpy(random_permutations(stream_keys(np.arange(self.orders)), shots))

    def in_orders(self, sequence: Tensor) -> Tensor:
        """The orders of sequences ``(T, S, ...)`` that are read: ``(T * R, S, ...)``, in training themselves."""
        if self._orders_now == 1:
            return sequence
        return sequence[:, self.places(sequence.shape[1]).to(sequence.device)].flatten(0, 1)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> State:
        """What is read from the support sets in each of the orders."""
        if is_regression(labels):
            raise UserError(f"{type(self).__name__} learns classes, but the targets are floats: give labels.")
        return self.read(self.in_orders(support), self.in_orders(labels))

    def by_order(self, state: State, queries: Tensor) -> Tensor:
        """Logits ``(T, R, Q, W)`` of queries ``(T, Q, E)``."""
        return self._split(self.answer(state, self.for_orders(queries)))

    def for_orders(self, queries: Tensor) -> Tensor:
        """Queries ``(T, Q, E)`` once for each order, ``(T * R, Q, E)``."""
        orders = self._orders_now
        return queries if orders == 1 else queries.repeat_interleave(orders, 0)

    def _split(self, found: Tensor) -> Tensor:
        return torch.unflatten(found, 0, (-1, self._orders_now))

    def as_given(self, values: Tensor) -> Tensor:
        """Values of support samples ``(T * R, Q, S)`` in the order given, averaged over the orders: ``(T, Q, S)``."""
        if self._orders_now == 1:
            return values
        places = self.places(values.shape[-1]).to(values.device).argsort(-1).unsqueeze(1)
        by_order = self._split(values)
        return by_order.gather(-1, places.expand_as(by_order)).mean(1)

    def predict_embeddings(self, state: State, queries: Tensor) -> Tensor:
        """Logarithms of the probabilities, averaged over the orders; logits if the order does not matter."""
        return self._combined(self.by_order(state, queries))

    def _combined(self, by_order: Tensor) -> Tensor:
        return _averaged(by_order) if self.order_sensitive else by_order.squeeze(1)

    def evaluated(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs for the queries, and how the score of each task varies between the orders."""
        shots = episode.support_y.shape[1]
        embedded = self.embed(concatenated(episode.support_x, episode.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], episode.support_y)
        by_order, more = self.by_order(state, embedded[:, shots:]), self.more_scores(state, episode)
        if self.order_sensitive:
            own = [
                self.score(mask_absent_classes(one, episode.support_y), episode.query_y) for one in by_order.unbind(1)
            ]
            more = {"order_spread": torch.stack(own).std(0), **more}
        return mask_absent_classes(self._combined(by_order), episode.support_y), more

    def more_scores(self, state: State, episode: Episode) -> dict[str, Tensor]:
        """Further scores ``(T,)`` of the tasks of an episode by name, from what was read; by default none."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """Adds the number of orders, if the order matters."""
        return super().protocol() | ({"orders": self.orders} if self.order_sensitive else {})


def _averaged(by_order: Tensor) -> Tensor:
    """``(T, R, Q, C)`` logits to the logarithms of the mean probabilities ``(T, Q, C)``."""
    summed: Tensor = by_order.log_softmax(-1).logsumexp(1)
    return summed - math.log(by_order.shape[1])
