"""Prototypical networks."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode, Inputs, map_inputs
from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.meta.inputs import concatenated, sample_axes
from metatransfer.functional.meta.prototypes import Distance, class_count, class_prototypes, prototype_scores
from metatransfer.functional.meta.stateless import batch_norm_layers
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.nn import Backbone


class ProtoNetModule(EpisodicModule[Tensor]):
    r"""Prototypical networks (Snell, Swersky, Zemel 2017, 1703.05175).

    A class is represented by the mean embedding of its support samples; a query is scored by

    .. math:: z_k = -\lVert f(x) - c_k\rVert^2 \quad\text{or}\quad z_k = s\cos(f(x), c_k).

    Ways and shots may differ between training and test; more ways in training usually help.

    Args:
        backbone: the embedding ``f``.
        distance: ``"euclidean"`` (squared, as in the paper) or ``"cosine"``.
        scale: initial value of the learned factor ``s`` of the cosine.
        optimizer: creates the optimiser (Adam at 1e-3 in the paper).
        lr_scheduler: creates its scheduler (the paper halves the rate every 2000 episodes).

    Raises:
        UserError: ``distance`` is unknown, or ``scale`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        distance: Distance = "euclidean",
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_choice("distance", distance, ("euclidean", "cosine"))
        check_positive(scale=scale)
        self.backbone = backbone
        self.distance = distance
        self.initial_scale = scale
        if distance == "cosine":
            self.scale = nn.Parameter(torch.tensor(float(scale)))

    def reset_parameters(self) -> None:
        """Resets the scale."""
        if self.distance == "cosine":
            nn.init.constant_(self.scale, self.initial_scale)

    def embed(self, x: Inputs) -> Tensor:
        """Embeddings ``(T, N, E)`` of samples ``(T, N, *shape)``."""
        embedded: Tensor = self.backbone(map_inputs(lambda part: part.flatten(0, 1), x))
        return torch.unflatten(embedded, 0, sample_axes(x, 2))

    def similarities(self, prototypes: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)`` of query embeddings against prototypes."""
        scale = self.scale if self.distance == "cosine" else 1.0
        return prototype_scores(queries, prototypes, self.distance, scale)

    def fit_tasks(self, support_x: Inputs, support_y: Tensor) -> Tensor:
        """The prototypes ``(T, W, E)``."""
        return class_prototypes(self.embed(support_x), support_y, class_count(support_y))

    def predict_tasks(self, state: Tensor, query_x: Inputs) -> Tensor:
        """Logits of the queries."""
        return self.similarities(state, self.embed(query_x))

    def forward(self, episode: Episode) -> Tensor:
        """Logits of the queries.

        Support and queries share one forward pass, and in training their BatchNorm statistics, as in the code of the
        paper. In evaluation the result equals that of :meth:`fit_tasks` and :meth:`predict_tasks`.
        """
        shots = episode.support_y.shape[1]
        embedded = self.embed(concatenated(episode.support_x, episode.query_x, 1))
        support, queries = embedded[:, :shots], embedded[:, shots:]
        return self.similarities(class_prototypes(support, episode.support_y, class_count(episode.support_y)), queries)

    def protocol(self) -> dict[str, Any]:
        """Adds the distance."""
        norm = "running" if batch_norm_layers(self.backbone) else "none"
        return super().protocol() | {"distance": self.distance, "batch_norm": norm}
