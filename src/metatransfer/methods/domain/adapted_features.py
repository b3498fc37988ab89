"""Linear maps of features into a space common to both domains, and a classifier fitted there."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters import FeatureClassifier, Labelled, NearestNeighbors
from metatransfer.arguments import as_call
from metatransfer.batches import DomainBatch, DomainSamples
from metatransfer.data_info import ServesDomains
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.methods.domain.adaptation import Adaptation, Pair
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.methods.fitted import FittedFeaturesModule, features_of
from metatransfer.metrics.validators import Validator
from metatransfer.nn import Backbone, RawFeatures
from metatransfer.nn.blocks.domain_norm import Side

if TYPE_CHECKING:  # the parser reads this when it meets the argument; nobody else waits for scikit-learn
    from metatransfer.adapters.estimators import DomainAdapter


class AdaptedFeaturesModule(FittedFeaturesModule, DomainAdaptationModule):
    r"""Maps the features of both domains into a common space and fits a classifier of the source there.

    .. math:: h \text{ is fitted to } \bigl(A_s f(x^s_i),\ y^s_i\bigr), \qquad \hat y(x) = h\bigl(A_t f(x)\bigr)

    Shallow methods such as subspace alignment (Fernando et al. 2013, 1409.5241) and CORAL (Sun, Feng, Saenko 2016,
    1511.05547). The network :math:`f` is not trained; :class:`~metatransfer.nn.RawFeatures` returns the samples
    themselves. Features are cached on disk, as in :class:`~metatransfer.FrozenFeaturesModule`. For the Trainer, a fit
    is one epoch of one batch in one process.

    Args:
        backbone: the network :math:`f`.
        num_classes: number of classes; on the command line taken from the data.
        adapter: finds the maps: ``SubspaceAlignment``, ``GeodesicFlowKernel``, ``TransferComponentAnalysis``,
            ``JointDistributionAdaptation``, ``CorrelationAlignment``, or a subclass of ``DomainAdapter``. ``None``
            leaves the features unchanged, which is the reference for adaptation.
        classifier: what is fitted; defaults to the nearest neighbour by Euclidean distance. ``LinearSVM`` standardises
            here only if told to; use ``standardize`` of the data, which knows the domains.
        validator: scores the fit; defaults to ``InformationMaximization``.
        cache_dir: folder of the features; defaults to ``METATRANSFER_CACHE`` or ``~/.cache/metatransfer/features``.

    Raises:
        UserError: ``num_classes`` is missing.
    """

    reads: ClassVar[type] = ServesDomains

    cannot_export = "its adapter maps features by NumPy, which torch.export cannot trace: keep its checkpoint"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        adapter: "DomainAdapter | None" = None,
        classifier: FeatureClassifier | None = None,
        validator: Validator | None = None,
        cache_dir: str | None = None,
    ) -> None:
        fitted = (classifier or NearestNeighbors(1, distance="euclidean")).keeping_scale()
        adaptation = Adaptation(validator=validator)
        super().__init__(backbone.requires_grad_(False), num_classes, lambda *_: fitted, adaptation)  # type: ignore[arg-type]
        self.adapter, self.cache_dir = adapter, cache_dir
        self.fitted_adapter: DomainAdapter | None = None
        self.train(self.training)

    @property
    def classifier(self) -> FeatureClassifier:
        """The classifier of adapted features."""
        return cast(FeatureClassifier, self.head)

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features of samples in the common space."""
        return self.adapted(self.backbone(x), domain)

    def adapted(self, features: Tensor, domain: Side) -> Tensor:
        """Maps features ``(N, E)`` of a domain to ``(N, k)``, in float64 if the device supports it."""
        found = features.detach().cpu().double()
        if self.fitted_adapter is not None:
            adapter = self.fitted_adapter
            mapped = (adapter.transform if domain == "target" else adapter.transform_source)(found.numpy())
            found = torch.from_numpy(np.ascontiguousarray(mapped))
        return found.to(self.device, torch.float32 if self.device.type == "mps" else None)

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """``None``: there is no loss to minimise."""
        return None

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of the fitted classifier, for logging."""
        outputs = self.classifier(self.encode(batch.source_x, "source"))
        return F.cross_entropy(outputs, batch.source_y), outputs

    def run_length(self) -> float:
        """One batch."""
        return 1.0

    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Computes or loads the features of both domains, fits the maps, then the classifier."""
        x, y = self._features(data.source_samples)
        target, _ = self._features(data.target_samples)
        self.fitted_adapter = None
        if self.adapter is not None:
            from sklearn.base import clone

            fresh: DomainAdapter = clone(self.adapter)
            self.fitted_adapter = fresh.fit(x.double().numpy(), y.numpy(), target=target.double().numpy())
        val_x, val_y = self._features(lambda: data.val_dataloader()[0])
        train, val = (
            Labelled(self.adapted(features, "source"), labels.to(self.device))
            for features, labels in ((x, y), (val_x, val_y))
        )
        self.classifier.fit(train, self.num_classes, val)

    def _features(self, loader: Callable[[], Iterable[DomainSamples]]) -> tuple[Tensor, Tensor]:
        """Features ``(N, E)`` and labels ``(N,)`` of a loader's samples, on the CPU."""
        if isinstance(self.backbone, RawFeatures):  # quicker read than looked up
            features, y = zip(
                *((found.cpu(), batch.y.cpu()) for batch, found in features_of(self, loader())), strict=True
            )
            return torch.cat(features), torch.cat(y)
        digest, labels = hashlib.sha256(str(self.trainer.precision).encode()), []
        for batch in loader():
            labels.append(batch.y.cpu())
            x = batch.x.cpu().contiguous()
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes())
        return self.cached(digest.hexdigest(), loader, sum(map(len, labels))), torch.cat(labels)

    def after_restart(self) -> None:
        """Discards what was fitted."""
        self.fitted_adapter, self.classifier.learned = None, {}

    def unadapted(self) -> "AdaptedFeaturesModule":
        """The same classifier on unchanged features."""
        networks = deep_copy((self.backbone, self.classifier))
        networks[1].learned = {}
        return AdaptedFeaturesModule(networks[0], self.num_classes, None, networks[1], self.validator, self.cache_dir)

    def take_over(self, other: DomainAdaptationModule) -> None:
        """Copies network, maps and classifier of another method with the same classifier."""
        assert isinstance(other, AdaptedFeaturesModule)
        self.backbone.load_state_dict(other.backbone.state_dict())
        self.fitted_adapter = copy.deepcopy(other.fitted_adapter)
        self.classifier.learned = dict(other.classifier.learned)

    def fitted_parts(self) -> dict[str, str]:
        """The adapter and the classifier."""
        name = "none" if self.adapter is None else type(self.adapter).__name__
        return {"adapter": name} | super().fitted_parts()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the fitted maps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adapter"] = _learned(self.fitted_adapter)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the fitted maps."""
        super().on_load_checkpoint(checkpoint)
        self.fitted_adapter = _with(self.adapter, checkpoint.get("adapter", {}))

    def protocol(self) -> dict[str, Any]:
        """Adds the adapter and its arguments."""
        return super().protocol() | {"adapter": "none" if self.adapter is None else as_call(self.adapter)}


def _learned(adapter: "DomainAdapter | None") -> dict[str, Tensor]:
    """The fitted attributes of an adapter, whose names end with an underscore by scikit-learn's convention."""
    if adapter is None:
        return {}
    found = {name: value for name, value in vars(adapter).items() if name.endswith("_")}
    numbers = {name: value for name, value in found.items() if isinstance(value, np.ndarray | float | int)}
    return {name: torch.from_numpy(np.array(value)) for name, value in numbers.items()}


def _with(adapter: "DomainAdapter | None", learned: dict[str, Tensor]) -> "DomainAdapter | None":
    """A copy of the adapter with the fitted attributes."""
    if adapter is None or not learned:
        return None
    found = copy.deepcopy(adapter)
    for name, value in learned.items():
        setattr(found, name, value.numpy() if value.dim() else value.item())
    return found
