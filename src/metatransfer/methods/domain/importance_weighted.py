"""Training on weighted source samples."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.arguments import as_call
from metatransfer.batches import DomainBatch
from metatransfer.checks import check_choice
from metatransfer.data_info import ServesDomains, datamodule_of
from metatransfer.errors import UserError
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation, Normalization
from metatransfer.methods.domain.source_only import SourceOnlyModule
from metatransfer.methods.fitted import features_of
from metatransfer.nn import Backbone, Head, LinearHead

if TYPE_CHECKING:  # the parser reads this when it meets the argument; nobody else waits for scikit-learn
    from metatransfer.adapters.estimators import ImportanceWeights

Features = Literal["raw", "backbone"]
_MOST_MATCHED = 5000  # source samples; twice as many take eight times as long, and four times the memory


class ImportanceWeightedModule(SourceOnlyModule):
    r"""Training on the source with each sample weighted by its importance for the target (Shimodaira 2000).

    .. math:: \min_{f, h}\ \frac1N\sum_i w_i\,\mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr), \qquad
              w_i \approx \frac{p_t(x^s_i)}{p_s(x^s_i)}, \qquad \frac1N\sum_i w_i = 1

    The weights correct for covariate shift, that is, for samples that are rarer or more frequent in the target, not for
    samples that look different there. The longer a network that can fit all samples trains, the smaller the effect of
    the weights (Byrd and Lipton 2019, 1812.03372). They are estimated once for all training samples of the source,
    before the first step, and kept in the checkpoint; ``train/effective_sample_size`` is the equivalent number of
    equally weighted samples. The other arguments are those of :class:`DomainAdaptationModule`.

    Args:
        estimator: estimates the weights: ``DiscriminatorWeights`` (default), ``KernelMeanMatching``, ``KLIEP``, or a
            subclass of ``ImportanceWeights``.
        features: input of the estimator: ``"raw"`` values of the samples, or features of the untrained ``"backbone"``,
            which is useful if it has pretrained weights.
        adaptation: see :class:`DomainAdaptationModule`; BatchNorm uses batches of the source only.

    Attributes:
        sample_weights: ``(N,)`` by the index of a source sample, with mean 1; empty before a fit.

    Raises:
        UserError: unknown ``features``, or an error of :class:`DomainAdaptationModule`.
    """

    normalizations: ClassVar[tuple[Normalization, ...]] = ("joint",)
    sample_weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        estimator: "ImportanceWeights | None" = None,
        features: Features = "raw",
        head: Callable[[int, int], Head] = LinearHead,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, head, adaptation, optimizer, lr_scheduler)
        check_choice("features", features, get_args(Features))
        self.estimator, self.features = estimator, features
        self.register_buffer("sample_weights", torch.zeros(0))

    @property
    def adapts(self) -> bool:
        """``True``: by its weights."""
        return True

    def source_loss(self, logits: Tensor, batch: DomainBatch) -> Tensor:
        """The weighted loss of the source."""
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(precise, batch.source_y, reduction="none")
        return (self.sample_weights[batch.source_number] * losses).mean()

    @property
    def needs_data_module(self) -> bool:
        """``True``: the weights need all samples of the source."""
        return True

    def setup(self, stage: str) -> None:
        """Checks that there is one process, which estimates the weights."""
        super().setup(stage)
        if stage == "fit" and self.trainer.world_size > 1:
            raise UserError(f"{type(self).__name__} estimates its weights in one process: set trainer.devices=1.")

    def on_train_start(self) -> None:
        """Estimates the weights, unless a run is resumed."""
        super().on_train_start()
        data: ServesDomains = datamodule_of(self)
        if not self.trainer.global_step or len(self.sample_weights) != sum(data.info().class_counts):
            kind = torch.get_default_dtype()
            self.sample_weights = torch.as_tensor(self.find_weights(data), dtype=kind, device=self.device)
        weights = self.sample_weights.double()
        self.log("train/effective_sample_size", (weights.sum().square() / weights.square().sum()).float())

    def find_weights(self, data: ServesDomains) -> NDArray[Any]:
        """The importance of all training samples of the source, ``(N,)`` with mean 1; matching takes at most 5000."""
        from sklearn.base import clone

        from metatransfer.adapters.estimators import DiscriminatorWeights, KernelMeanMatching

        estimator = DiscriminatorWeights() if self.estimator is None else clone(self.estimator)
        count = sum(data.info().class_counts)
        if isinstance(estimator, KernelMeanMatching) and count > _MOST_MATCHED:
            raise UserError(
                f"the time of KernelMeanMatching is cubic in the number of source samples, of which it accepts at most "
                f"{_MOST_MATCHED}, but there are {count}: choose DiscriminatorWeights or KLIEP, or set "
                "labels_per_class of the source to use fewer samples."
            )
        source, target = (self._rows(samples).numpy() for samples in (data.source_samples(), data.target_samples()))
        return estimator.fit(source, target=target).weights_

    @torch.no_grad()
    def _rows(self, loader: Any) -> Tensor:  # noqa: ANN401
        """Inputs of the estimator, ``(N, d)`` in double precision."""
        if self.features == "raw":
            return torch.cat([batch.x.flatten(1).double().cpu() for batch in loader])
        training = self.backbone.training
        self.backbone.eval()
        found = torch.cat([features.double().cpu() for _, features in features_of(self, loader)])
        self.backbone.train(training)
        return found

    def after_restart(self) -> None:
        """Discards the weights."""
        super().after_restart()
        self.sample_weights = self.sample_weights[:0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resizes the buffer to the number of weights in the checkpoint."""
        known = checkpoint["state_dict"].get("sample_weights")
        if known is not None:
            self.sample_weights = self.sample_weights.new_zeros(known.shape)
        super().on_load_checkpoint(checkpoint)

    def protocol(self) -> dict[str, Any]:
        """Adds the estimator of the weights."""
        name = "DiscriminatorWeights()" if self.estimator is None else as_call(self.estimator)
        return super().protocol() | {"train_importance_weights": f"{name} of {self.features} features"}
