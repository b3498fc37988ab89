"""Meta-Baseline."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode
from metatransfer.checks import check_not_negative, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.methods.metric.protonet import ProtoNetModule
from metatransfer.nn import Backbone, LinearHead


class MetaBaselineModule(ProtoNetModule):
    r"""Meta-Baseline (Chen et al. 2021, 2003.04390).

    In the first ``pretrain_epochs`` epochs the samples of the episodes train a classifier of all training classes, by
    cross-entropy. After these the classifier is not used any more, and the method is trained as a prototypical network
    with :math:`z_k = s\cos(f(x), c_k)`. Evaluation uses the cosines in both phases.

    Args:
        backbone: the embedding ``f``.
        train_classes: number of training classes; on the command line taken from the data.
        pretrain_epochs: number of epochs of the first phase.
        scale: initial value of the learned factor ``s``.
        optimizer: creates the optimiser, which serves both phases (SGD at 0.1, then 0.001, in the paper).
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: ``train_classes`` is missing, ``pretrain_epochs`` is negative, or ``scale`` is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        train_classes: int | None = None,
        pretrain_epochs: int = 2,
        scale: float = 10.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, "cosine", scale, optimizer, lr_scheduler)
        if train_classes is None:
            raise UserError(
                "MetaBaselineModule needs train_classes, the number of classes that training episodes are drawn from: "
                "on the command line it follows data that draws episodes from labelled samples."
            )
        check_positive(train_classes=train_classes)
        check_not_negative(pretrain_epochs=pretrain_epochs)
        self.train_classes, self.pretrain_epochs = train_classes, pretrain_epochs
        self.classifier = LinearHead(backbone.out_features, train_classes)

    def training_loss(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The loss of the current phase, and the logits ``(T, Q, W)`` of the queries."""
        if self.current_epoch >= self.pretrain_epochs:
            loss, outputs = super().training_loss(episode)
            unused = list(self.classifier.parameters())
        else:
            loss, outputs = self._classification(episode)
            unused = [self.scale]
        # parameters of the other phase have a gradient of 0, which training in several processes needs
        return loss + 0.0 * sum(value.sum() for value in unused), outputs

    def _classification(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The cross-entropy of all samples over all training classes."""
        labels = self._classes_of(episode)
        embedded, shots = self.embed(concatenated(episode.support_x, episode.query_x, 1)), episode.support_y.shape[1]
        loss = episode_loss(self.classifier(embedded), labels)
        with torch.no_grad():
            state = self.fit_embeddings(embedded[:, :shots], episode.support_y)
            return loss, self.predict_embeddings(state, embedded[:, shots:])

    def _classes_of(self, episode: Episode) -> Tensor:
        """The training class of each sample, ``(T, S + Q)``."""
        if episode.classes is None:
            raise UserError(
                "MetaBaselineModule needs the classes that its training episodes were drawn from, but they carry none: "
                "use data of labelled samples, or set pretrain_epochs to 0."
            )
        if "classes" not in self._checked:  # looking at labels waits for the device
            self._checked.add("classes")
            if int(episode.classes.max()) >= self.train_classes:
                raise UserError(
                    f"a training episode has the class {int(episode.classes.max())}, but MetaBaselineModule was built "
                    f"with train_classes={self.train_classes}: give the number of training classes of the data."
                )
        return episode.classes.gather(1, torch.cat([episode.support_y, episode.query_y], 1))

    def protocol(self) -> dict[str, Any]:
        """Adds the number of classes and epochs of the first phase."""
        return super().protocol() | {
            "train_classes": self.train_classes, "train_pretrain_epochs": self.pretrain_epochs
        }  # fmt: skip
