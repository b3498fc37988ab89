"""A classifier of the features of a network that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from metatransfer.adapters import FeatureClassifier, NearestClassMean
from metatransfer.adapters.feature_classifiers import Labelled
from metatransfer.batches import Inputs, LabelledBatch
from metatransfer.errors import UserError
from metatransfer.methods.classifier import ClassifierModule
from metatransfer.methods.features.cache import cached_features
from metatransfer.nn import Backbone


class FrozenFeaturesModule(ClassifierModule):
    r"""Fits a classifier to features :math:`f(x)` that a network gives without being trained.

    The features of the training and validation samples are computed once, without augmentation, and kept on disk under
    a key made of weights, arguments, samples and transform: whatever needs the same ones again, another classifier or
    another run, only reads them. A fit is one epoch of one batch in the Trainer's count; the classifier is fitted
    before it, in one process.

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
        self.automatic_optimization = False
        self.train(self.training)

    def train(self, mode: bool = True) -> FrozenFeaturesModule:
        """As of torch, but the network stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Inputs) -> Tensor:
        """Logits ``(N, C)`` of samples."""
        outputs: Tensor = self.classifier(self.backbone(x))
        return outputs

    def training_loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of what was fitted already, for the log."""
        outputs = self(batch.x)
        return torch.nn.functional.cross_entropy(outputs.float(), batch.y), outputs

    # ---- the fit

    def setup(self, stage: str) -> None:
        """As of the base; a fit needs one batch of one epoch, and one process.

        Raises:
            UserError: several processes, or data without a way to read the training samples as a whole.
        """
        super().setup(stage)
        if stage != "fit":
            return
        if self.trainer.world_size > 1:
            raise UserError("FrozenFeaturesModule is fitted in one process: set trainer.devices=1.")
        if not hasattr(getattr(self.trainer, "datamodule", None), "train_samples"):
            raise UserError(
                "FrozenFeaturesModule needs a data module of labelled samples, such as ImageFolderDataModule."
            )
        self.trainer.limit_train_batches, self.trainer.fit_loop.max_epochs = 1, 1

    def on_train_start(self) -> None:
        """Computes or finds the features, and fits the classifier."""
        super().on_train_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        train, val = (self._labelled(data, split) for split in ("train", "val"))
        self.classifier.fit(train, self.num_classes, val)

    @torch.no_grad()
    def _labelled(self, data: Any, split: str) -> Labelled:  # noqa: ANN401
        samples = data.split(split)
        found = cached_features(
            self.backbone, data.content_key(split), lambda: self._features(data, split), len(samples), self.cache_dir
        )
        y = torch.from_numpy(samples.labels)
        # a copy: what is mapped cannot be written to, and torch would warn of it
        return Labelled(torch.from_numpy(found.copy()).to(self.device), y.to(self.device))

    def _features(self, data: Any, split: str) -> Iterator[Tensor]:  # noqa: ANN401
        loader = data.train_samples() if split == "train" else data.val_dataloader()
        for batch in loader:
            moved = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                yield self.backbone(moved.x)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimiser of nothing: Lightning counts its steps, and saves checkpoints by them."""
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Logs how well the first training batch is told; nothing is left to learn."""
        self.shared_step(batch, "train")
        self.optimizers().step()  # type: ignore[union-attr]

    # ---- what is kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with what the classifier learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classifier"] = {name: value.cpu() for name, value in self.classifier.learned.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of the base, with what the classifier learned.

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
        """As of the base, with the classifier."""
        return super().protocol() | {"classifier": self.classifier.protocol(), "backbone": type(self.backbone).__name__}
