"""A classifier on the features of a frozen network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters import FeatureClassifier, Labelled, NearestClassMean
from metatransfer.batches import Inputs, LabelledBatch
from metatransfer.data_info import ServesSamples
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.fitted import FittedFeaturesModule, features_of
from metatransfer.nn import Backbone, RawFeatures


class FrozenFeaturesModule(FittedFeaturesModule, ClassifierModule):
    """Fits a classifier to features :math:`f(x)` of a network that is not trained.

    Donahue et al. 2014 (1310.1531); compared with fine-tuning by Kornblith, Shlens, Le 2019 (1805.08974).

    The features of the training and validation samples are computed once, without augmentation, and cached on disk.
    They are computed again only if weights, arguments, samples, transform or precision change. With ``RawFeatures`` and
    a ``LinearSVM``, the rows of a sparse matrix stay sparse. For the Trainer, a fit is one epoch of one batch in one
    process.

    Args:
        backbone: the network :math:`f`, usually with pretrained ``weights``.
        num_classes: number of classes; on the command line taken from the data.
        classifier: what is fitted: :class:`~metatransfer.adapters.NearestClassMean` (default), ``NearestNeighbors``,
            ``LinearSVM``, ``LinearProbe``, or a subclass of ``FeatureClassifier``.
        cache_dir: folder of the features; defaults to ``METATRANSFER_CACHE`` or ``~/.cache/metatransfer/features``.

    Raises:
        UserError: ``num_classes`` is missing.
    """

    classifier: FeatureClassifier

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

    def forward(self, x: Inputs) -> Tensor:
        """Logits ``(N, C)`` of samples."""
        return self.classifier(self.backbone(x))  # type: ignore[no-any-return]

    def fit_data(self, data: ServesSamples) -> None:
        """Computes or loads the features, and fits the classifier."""
        train, val = (self._labelled(data, split) for split in ("train", "val"))
        self.classifier.fit(train, self.num_classes, val)

    def _labelled(self, data: ServesSamples, split: str) -> Labelled:
        labels = data.labels(split)
        if isinstance(self.backbone, RawFeatures) and self.classifier.takes_sparse and data.info().sparse:
            return Labelled(self._sparse(data, split), labels.to(self.device))
        content = f"{self.trainer.precision} {data.content_key(split)}"
        features = self.cached(content, lambda: data.samples(split), len(labels))
        return Labelled(features.to(self.device), labels.to(self.device))

    def _sparse(self, data: ServesSamples, split: str) -> Tensor:
        """Samples ``(N, E)`` that stay sparse; one batch at a time is dense."""
        parts = [(batch.number, x.float().to_sparse()) for batch, x in features_of(self, data.samples(split))]
        numbers, rows = (torch.cat(list(one)) for one in zip(*parts, strict=True))
        return rows.coalesce().index_select(0, numbers.argsort())

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of the fitted classifier and the logits, for logging."""
        outputs = self(batch.x)
        return F.cross_entropy(outputs.float(), batch.y), outputs
