"""Base class of methods that learn tasks from embeddings."""

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode, Inputs
from metatransfer.functional.losses import mask_absent_classes
from metatransfer.functional.meta.inputs import concatenated, embed_tasks
from metatransfer.functional.meta.stateless import batch_norm_layers
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
