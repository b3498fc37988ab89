"""Prototypical networks."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_choice, check_positive
from metatransfer.functional.meta.prototypes import Distance, class_count, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone


class ProtoNetModule(EmbeddingModule[Tensor]):
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
        super().__init__(backbone, optimizer, lr_scheduler)
        check_choice("distance", distance, ("euclidean", "cosine"))
        check_positive(scale=scale)
        self.distance = distance
        self.initial_scale = scale
        if distance == "cosine":
            self.scale = nn.Parameter(torch.tensor(float(scale)))

    def reset_parameters(self) -> None:
        """Resets the scale."""
        if self.distance == "cosine":
            nn.init.constant_(self.scale, self.initial_scale)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The prototypes ``(T, W, E)``."""
        return class_prototypes(support, labels, class_count(labels))

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)`` of query embeddings against prototypes."""
        scale = self.scale if self.distance == "cosine" else 1.0
        return prototype_scores(queries, state, self.distance, scale)

    def protocol(self) -> dict[str, Any]:
        """Adds the distance."""
        return super().protocol() | {"distance": self.distance}
