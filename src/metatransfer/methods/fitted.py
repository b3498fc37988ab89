"""Methods that are fitted at once instead of step by step, still by the Trainer; features of networks, on disk."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.adapters import FeatureClassifier
from metatransfer.checks import check_writable
from metatransfer.data_info import ServesSamples, datamodule_of
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.module_keys import module_key
from metatransfer.nn import Backbone
from metatransfer.storage import cache_file, cache_folder, keep_array, kept_array

_FORMAT = 4  # of the cached features
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
        """A dummy optimiser: Lightning counts its steps, and saves checkpoints by them."""
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


@torch.no_grad()
def features_of(module: MethodModule, loader: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Yields each batch on the module's device and its features ``(B, E)``, in the precision of the Trainer."""
    precision = module.trainer.precision_plugin
    for place, batch in enumerate(loader):
        moved = module.transfer_batch_to_device(precision.convert_input(batch), module.device, 0)
        if not place:
            module.check_samples(moved.x)
        with precision.forward_context():
            features = module.backbone(moved.x)  # type: ignore[operator]
        yield moved, features


def cached_features(
    backbone: Backbone,
    content: str,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    samples: int,
    cache_dir: str | None = None,
) -> NDArray[np.float32]:
    """Features ``(N, E)`` float32 of samples, read from the cache if possible.

    Args:
        backbone: the network, in evaluation mode.
        content: identifies samples and transform.
        batches: returns numbers ``(B,)`` and features ``(B, E)`` of all samples in any order; called only if the cache
            has none.
        samples: number of samples.
        cache_dir: folder of the cache.

    Raises:
        UserError: the folder cannot be written to, or features are not finite.
    """
    shape = (samples, backbone.out_features)
    path = cache_file(cache_folder("features", cache_dir), "features", str(_FORMAT), module_key(backbone), content)
    kept = kept_array(path, shape, np.float32)
    if kept is not None:
        return kept.array
    # an error now rather than after the work
    check_writable(path.parent, "the folder of cached features (cache_dir or METATRANSFER_CACHE)")
    found = _computed(shape, batches(), type(backbone).__name__)
    try:
        keep_array(path, found)
    except OSError as error:  # e.g. a full disk: the work is not lost
        rank_zero_warn(f"the features could not be saved in '{path.parent}' ({error.strerror or error}).")
    return found


def _computed(shape: tuple[int, int], batches: Iterable[tuple[Tensor, Tensor]], name: str) -> NDArray[np.float32]:
    """The features of all batches, in the order of the samples."""
    array, given = np.empty(shape, np.float32), np.zeros(shape[0], bool)
    for numbers, features in batches:
        finite = torch.isfinite(features).all(1)
        if not finite.all():
            raise UserError(
                f"{name} computes features that are NaN or infinite, first for sample {int(numbers[~finite][0])}: "
                "check the sample and the weights."
            )
        rows = numbers.cpu().numpy()
        array[rows] = features.float().cpu().numpy()
        given[rows] = True
    assert given.all(), f"{(~given).sum()} samples were left out"
    return array
