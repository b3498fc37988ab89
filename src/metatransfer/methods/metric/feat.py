"""FEAT."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_not_negative, check_positive
from metatransfer.functional.losses import mask_absent_classes
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.functional.meta.prototypes import class_count, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone, SetAttention


class FEATModule(EmbeddingModule[Tensor]):
    r"""FEAT (Ye, Hu, Zhan, Sha 2020, 1812.03664): prototypes that are adapted to the task by self-attention.

    The prototypes :math:`c_1, \dots, c_W` of a task are the members of a set, and a transformer :math:`\mathcal T` of
    one head adapts each to the others:

    .. math:: (\psi_1, \dots, \psi_W) = \mathcal T(c_1, \dots, c_W), \qquad
              z_k = -\lVert f(x) - \psi_k\rVert^2 / \tau

    In training, the same transformer also adapts the support and query samples of each class as a set, and a
    contrastive loss draws the embeddings of all samples to the mean of their adapted class (weight :math:`\lambda`,
    temperature :math:`\tau'`). It uses the query labels, but no prediction does.

    The paper starts from a pretrained backbone and has dropout in the transformer; here, ``backbone.weights`` loads
    weights, and there is no dropout.

    Args:
        backbone: the embedding ``f``.
        temperature: :math:`\tau`; the paper uses 64 for embeddings of size 640.
        contrast: weight :math:`\lambda` of the contrastive loss; 0 leaves it out.
        contrast_temperature: :math:`\tau'`.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a temperature is not positive, or ``contrast`` is negative.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: float = 1.0,
        contrast: float = 0.1,
        contrast_temperature: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_positive(temperature=temperature, contrast_temperature=contrast_temperature)
        check_not_negative(contrast=contrast)
        self.temperature, self.contrast, self.contrast_temperature = temperature, contrast, contrast_temperature
        self.attention = SetAttention(backbone.out_features)

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The adapted prototypes ``(T, W, E)``."""
        adapted: Tensor = self.attention(class_prototypes(support, labels, class_count(labels)))
        return adapted

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)``."""
        return prototype_scores(queries, state, "euclidean") / self.temperature

    def training_loss(self, batch: Episode) -> tuple[Tensor, Tensor]:
        """The query loss and the contrastive loss, and the logits."""
        shots = batch.support_y.shape[1]
        embedded = self.embed(concatenated(batch.support_x, batch.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], batch.support_y)
        outputs = mask_absent_classes(self.predict_embeddings(state, embedded[:, shots:]), batch.support_y)
        loss = self.loss(outputs, batch.query_y)
        if self.contrast:
            labels = torch.cat([batch.support_y, batch.query_y], 1)
            loss = loss + self.contrast * self.contrastive_loss(embedded, labels)
        return loss, outputs

    def contrastive_loss(self, embedded: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of samples ``(T, N, E)`` by their distance from the means of the adapted classes, a scalar."""
        adapted = self.attention(embedded, labels.unsqueeze(2) == labels.unsqueeze(1))
        centers = class_prototypes(adapted, labels, class_count(labels))
        scores = prototype_scores(embedded, centers, "euclidean") / self.contrast_temperature
        return self.loss(mask_absent_classes(scores, labels), labels)

    def protocol(self) -> dict[str, Any]:
        """Adds the temperature and the settings of the contrastive loss."""
        return super().protocol() | {
            "temperature": self.temperature,
            "train_contrast": self.contrast,
            "train_contrast_temperature": self.contrast_temperature,
        }
