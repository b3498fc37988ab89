"""Methods that are fitted at once instead of step by step, still by the Trainer."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from metatransfer.adapters import FeatureClassifier
from metatransfer.data_info import ServesSamples, datamodule_of
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.methods.feature_cache import cached_features, features_of
from metatransfer.nn import Backbone

_FIT = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 1, "val_check_interval": 1.0, "limit_train_batches": 1}


class FittedModule(MethodModule):
    """A mixin for methods that learn from all training samples at once; list it before the classifier among the bases.

    For the Trainer, a fit is one epoch of one batch in one process; :meth:`fit_data` runs before it. Everything else
    works as for other classifiers.

    Attributes:
        reads: protocol of the data that :meth:`fit_data` needs.
    """

    reads: ClassVar[type] = ServesSamples

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """``False``: there is no step to take."""
        return False

    @abstractmethod
    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Learns from the training samples of a data module."""

    def setup(self, stage: str) -> None:
        """Limits the Trainer to one batch of one epoch."""
        super().setup(stage)
        if stage != "fit":
            return
        name = type(self).__name__
        if self.trainer.world_size > 1:
            raise UserError(f"{name} is fitted in one process: set trainer.devices=1.")
        if not isinstance(datamodule_of(self), self.reads):
            raise UserError(f"{name} needs a data module of labelled samples: use a LabelledDataModule.")
        # nothing is evaluated before the fit, and everything after it
        self._given = {name: getattr(self.trainer, name) for name in _FIT}
        self._max_epochs = self.trainer.max_epochs
        for setting, value in _FIT.items():
            setattr(self.trainer, setting, value)
        self.trainer.fit_loop.max_epochs = 1

    def teardown(self, stage: str) -> None:
        """Restores the Trainer's settings."""
        super().teardown(stage)
        if stage == "fit":
            for setting, value in self._given.items():
                setattr(self.trainer, setting, value)
            self.trainer.fit_loop.max_epochs = self._max_epochs

    def on_train_start(self) -> None:
        """Fits the method."""
        super().on_train_start()
        self.fit_data(datamodule_of(self))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """A dummy optimizer: Lightning counts its steps, and saves checkpoints by them."""
        nothing = torch.zeros(1, requires_grad=True, device=self.device)
        nothing.grad = torch.zeros_like(nothing)  # a scaler of float16 asks for a gradient
        return torch.optim.SGD([nothing], lr=0.0)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Logs the loss of the first training batch."""
        super().training_step(batch, batch_idx)  # type: ignore[safe-super]
        self.optimizers().step()  # type: ignore[union-attr]


class FittedFeaturesModule(FittedModule):
    """A mixin for methods that fit a classifier to the features of a frozen network.

    Attributes:
        backbone: the network, always in evaluation mode.
        cache_dir: folder of the cached features.
    """

    backbone: Backbone
    cache_dir: str | None

    if TYPE_CHECKING:

        @property
        def classifier(self) -> FeatureClassifier:
            """The classifier of the features."""

    @property
    def calibrated(self) -> bool:
        """Whether the softmax of the classifier's outputs is meant as a probability."""
        return self.classifier.calibrated

    def train(self, mode: bool = True) -> Self:
        """Keeps the network in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def cached(self, content: str, loader: Callable[[], Iterable[Any]], count: int) -> Tensor:
        """Features ``(count, E)`` of a loader's samples by their numbers, see :func:`cached_features`."""

        def computed() -> Iterator[tuple[Tensor, Tensor]]:
            return ((batch.number, features) for batch, features in features_of(self, loader()))

        return torch.from_numpy(cached_features(self.backbone, content, computed, count, self.cache_dir))

    def fitted_parts(self) -> dict[str, str]:
        """Class names that a checkpoint must share, by argument."""
        return {"classifier": type(self.classifier).__name__}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the classifier learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classifier"] = {name: value.cpu() for name, value in self.classifier.learned.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what the classifier learned."""
        super().on_load_checkpoint(checkpoint)
        trained = checkpoint.get("protocol", {}).get("method", {})
        for part, own in self.fitted_parts().items():
            known = str(trained.get(part, own)).partition("(")[0]
            if known != own:
                raise UserError(
                    f"the checkpoint was fitted with the {part} {known}, but this module has {own}: use the {part} of "
                    "the checkpoint."
                )
        self.classifier.learned = dict(checkpoint.get("classifier", {}))

    def protocol(self) -> dict[str, Any]:
        """Adds the classifier and the network."""
        return super().protocol() | {"classifier": self.classifier.protocol(), "backbone": type(self.backbone).__name__}
