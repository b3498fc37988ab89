"""Supervised pretraining, tested on episodes by the nearest class mean."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import LabelledBatch
from metatransfer.checks import check_batch_kind, check_choice, check_labelled_batch, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss, episode_scores
from metatransfer.functional.meta.prototypes import Distance, class_count, class_prototypes, prototype_scores
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.methods.outputs import checked_pair
from metatransfer.nn import Backbone, Head, LinearHead


class PretrainModule(EmbeddingModule[Tensor]):
    r"""A classifier of all training classes, whose features label new tasks by the nearest class mean.

    Classifier-Baseline of Meta-Baseline (Chen et al. 2021, 2003.04390); with ``distance="euclidean"`` the plain form of
    SimpleShot (Wang et al. 2019, 1911.04623); with ``head=CosineHead`` trained as Baseline++ (Chen et al. 2019,
    1904.04232), whose own test is in :class:`~metatransfer.BaselinePlusPlusModule`. Training minimises the
    cross-entropy of a head on labelled batches, as :class:`~metatransfer.ClassBatches` serves them; evaluation does not
    use the head:

    .. math:: c_k = \frac1{|S_k|}\sum_{i\in S_k} f(x_i), \qquad
              z_k = s\cos(f(x), c_k) \quad\text{or}\quad z_k = -\lVert f(x) - c_k\rVert^2.

    Other methods can start from its checkpoint: ``--model.backbone.weights <checkpoint>``.

    Args:
        backbone: the features ``f``.
        num_classes: number of training classes; on the command line taken from the data.
        head: creates the output layer of the training from ``(in_features, num_classes)``.
        distance: of the evaluation, ``"cosine"`` or ``"euclidean"`` (squared).
        scale: factor ``s`` of the cosine: it changes the probabilities, not the answers.
        optimizer: creates the optimiser; the papers use SGD at 0.1 with momentum 0.9.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``num_classes`` is missing, an unknown distance, or a number that is not positive.
    """

    learns_from: ClassVar[type] = LabelledBatch

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        distance: Distance = "cosine",
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        if num_classes is None:
            raise UserError(
                f"{type(self).__name__} needs num_classes, the number of training classes: on the command line it "
                "follows data that is wrapped, data: {class_path: ClassBatches, init_args: {episodes: ...}}."
            )
        check_positive(num_classes=num_classes, scale=scale)
        check_choice("distance", distance, ("cosine", "euclidean"))
        self.head = head(backbone.out_features, num_classes)
        self.num_classes, self.distance, self.scale = num_classes, distance, scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ANN401
        """The loss of a labelled batch, or of a pair ``(x, y)``."""
        if "train" not in self._checked:  # looking at labels waits for the device
            check_batch_kind(batch, LabelledBatch, f"{type(self).__name__} learns from")
            check_labelled_batch(LabelledBatch(*batch), self.num_classes)
            self.check_samples(batch[0])
            self._checked.add("train")
        batch = LabelledBatch(*batch)
        loss, outputs = checked_pair(self, self.training_loss(batch))
        score = episode_scores(outputs.detach().unsqueeze(0), batch.y.unsqueeze(0)).mean()
        self.log_dict({"train/loss": loss, "train/accuracy": score}, prog_bar=True, batch_size=len(batch.y))
        return loss

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over all training classes, and the logits ``(N, num_classes)``."""
        outputs = self.head(self.backbone(batch.x))
        return episode_loss(outputs, batch.y), outputs

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """The class means ``(T, W, E)``."""
        return class_prototypes(support, labels, class_count(labels))

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Scores of query embeddings against the class means."""
        return prototype_scores(queries, state, self.distance, self.scale)

    def protocol(self) -> dict[str, Any]:
        """Adds the distance and the number of training classes."""
        return super().protocol() | {
            "distance": self.distance,
            "train_classes": self.num_classes,
            "train_head": type(self.head).__name__,
        }
