"""A classifier of the features of a network that stays as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters import FeatureClassifier, Labelled, NearestClassMean
from metatransfer.batches import Inputs, LabelledBatch
from metatransfer.data_info import ServesSamples
from metatransfer.errors import UserError
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.feature_cache import cached_features, features_of
from metatransfer.methods.fitted import FittedModule
from metatransfer.nn import Backbone


class FrozenFeaturesModule(FittedModule, ClassifierModule):
    r"""Fits a classifier to features :math:`f(x)` that a network gives without being trained.

    Donahue et al. 2014 (1310.1531); Kornblith, Shlens, Le 2019 (1805.08974) compare it with fine-tuning.

    The features of the training and validation samples are computed once, without augmentation, and kept on disk under
    a key made of weights, arguments, samples, transform and precision: whatever needs the same ones again, another
    classifier or another run, only reads them. A fit is one epoch of one batch in the Trainer's count; the classifier
    is fitted before it, in one process.

    Args:
        backbone: the network :math:`f`; its own argument ``weights`` says what it knows.
        num_classes: number of classes; on the command line taken from the data.
        classifier: what is fitted: :class:`~metatransfer.adapters.NearestClassMean`, ``NearestNeighbors``,
            ``LinearSVM``, ``LinearProbe``, or a subclass of ``FeatureClassifier``.
        cache_dir: folder of the features; ``~/.cache/metatransfer/features`` or ``METATRANSFER_CACHE`` without it.

    Raises:
        UserError: ``num_classes`` missing.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        classifier: FeatureClassifier | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(num_classes)
        self.backbone = backbone.requires_grad_(False)
        self.classifier = classifier or NearestClassMean()
        self.cache_dir = cache_dir
        self.train(self.training)

    def train(self, mode: bool = True) -> FrozenFeaturesModule:
        """Keeps the network in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Inputs) -> Tensor:
        """Logits ``(N, C)`` of samples."""
        outputs: Tensor = self.classifier(self.backbone(x))
        return outputs

    # ---- the fit

    def fit_data(self, data: ServesSamples) -> None:
        """Computes or finds the features, and fits the classifier."""
        train, val = (self._labelled(data, split) for split in ("train", "val"))
        self.classifier.fit(train, self.num_classes, val)

    def _labelled(self, data: ServesSamples, split: str) -> Labelled:
        labels = data.labels(split)
        found = cached_features(
            self.backbone,
            f"{self.trainer.precision} {data.content_key(split)}",
            lambda: ((batch.number, features) for batch, features in features_of(self, data.samples(split))),
            len(labels),
            self.cache_dir,
        )
        return Labelled(torch.from_numpy(found).to(self.device), labels.to(self.device))

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of what was fitted already, and the logits, for the log."""
        outputs = self(batch.x)
        return F.cross_entropy(outputs.float(), batch.y), outputs

    # ---- what is kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the classifier learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classifier"] = {name: value.cpu() for name, value in self.classifier.learned.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads what the classifier learned.

        Raises:
            UserError: a checkpoint of another classifier.
        """
        super().on_load_checkpoint(checkpoint)
        learned = checkpoint.get("classifier", {})
        trained = checkpoint.get("protocol", {}).get("method", {}).get("classifier", "").partition("(")[0]
        if trained and trained != type(self.classifier).__name__:
            raise UserError(
                f"the checkpoint was fitted with {trained}, but this module has a {type(self.classifier).__name__}: "
                "give the classifier that it was fitted with."
            )
        self.classifier.learned = dict(learned)

    def protocol(self) -> dict[str, Any]:
        """Also says the classifier and the network."""
        return super().protocol() | {"classifier": self.classifier.protocol(), "backbone": type(self.backbone).__name__}
