"""Features that linear maps bring together across domains, and a classifier fitted to them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.adapters import FeatureClassifier, Labelled, NearestNeighbors
from metatransfer.arguments import plain_arguments
from metatransfer.batches import DomainBatch, DomainSamples
from metatransfer.data_info import ServesDomains
from metatransfer.errors import UserError
from metatransfer.methods.domain.adaptation import Adaptation
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.methods.domain.pairs import Pair
from metatransfer.methods.feature_cache import cached_features, features_of
from metatransfer.methods.fitted import FittedModule
from metatransfer.metrics.validators import Validator
from metatransfer.nn import Backbone
from metatransfer.nn.backbones.raw_features import RawFeatures
from metatransfer.nn.blocks.domain_norm import Side

if TYPE_CHECKING:  # the parser reads this when it meets the argument; nobody else waits for scikit-learn
    from metatransfer.adapters.estimators import DomainAdapter


class AdaptedFeaturesModule(FittedModule, DomainAdaptationModule):
    r"""Fits maps of both domains' features into one space, and there a classifier of the source, all at once.

    .. math:: h \text{ is fitted to } \bigl(A_s f(x^s_i),\ y^s_i\bigr), \qquad \hat y(x) = h\bigl(A_t f(x)\bigr)

    The shallow methods of the field, such as subspace alignment (Fernando et al. 2013, 1409.5241) and CORAL (Sun, Feng,
    Saenko 2016, 1511.05547). The network :math:`f` is not trained: :class:`~metatransfer.nn.RawFeatures` gives samples
    as they are, any other network what it knows. Its features are computed once and kept on disk, as those of
    :class:`~metatransfer.FrozenFeaturesModule`. A fit is one epoch of one batch in the Trainer's count, in one process.

    Args:
        backbone: the network :math:`f`.
        num_classes: number of classes; on the command line taken from the data.
        adapter: finds the maps: ``SubspaceAlignment``, ``GeodesicFlowKernel``, ``TransferComponentAnalysis``,
            ``JointDistributionAdaptation``, ``CorrelationAlignment``, or a subclass of ``DomainAdapter``; ``None``:
            features stay as they are, which is what adaptation is compared with.
        classifier: what is fitted; the class of the nearest sample by Euclidean distance where left out.
        validator: scores what was fitted; ``InformationMaximization`` where left out.
        cache_dir: folder of the features; ``~/.cache/metatransfer/features`` or ``METATRANSFER_CACHE`` without it.

    Raises:
        UserError: ``num_classes`` missing.
    """

    reads: ClassVar[type] = ServesDomains

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        adapter: DomainAdapter | None = None,
        classifier: FeatureClassifier | None = None,
        validator: Validator | None = None,
        cache_dir: str | None = None,
    ) -> None:
        fitted = classifier or NearestNeighbors(1, distance="euclidean")
        super().__init__(
            backbone=backbone.requires_grad_(False),
            num_classes=num_classes,
            head=lambda *_: fitted,  # type: ignore[arg-type]
            adaptation=Adaptation(validator=validator),
        )
        self.adapter, self.cache_dir = adapter, cache_dir
        self.fitted_adapter: DomainAdapter | None = None
        self.train(self.training)

    @property
    def classifier(self) -> FeatureClassifier:
        """What tells classes by adapted features."""
        return cast(FeatureClassifier, self.head)

    def train(self, mode: bool = True) -> AdaptedFeaturesModule:
        """Keeps the network in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # ---- answers

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features of samples in the common space."""
        return self.adapted(self.backbone(x), domain)

    def adapted(self, features: Tensor, domain: Side) -> Tensor:
        """What the maps make of features; these themselves where there are none.

        Args:
            features: ``(N, E)``.
            domain: where they come from.

        Returns:
            ``(N, k)``, in double precision where the device has it.
        """
        found = features.detach().cpu().double()
        if self.fitted_adapter is not None:
            adapter = self.fitted_adapter
            mapped = (adapter.transform if domain == "target" else adapter.transform_source)(found.numpy())
            found = torch.from_numpy(np.ascontiguousarray(mapped))
        return found.to(self.device, torch.float32 if self.device.type == "mps" else None)

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """Nothing: no loss is minimised."""
        return None

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of what was fitted already, for the log."""
        outputs = self.classifier(self.encode(batch.source_x, "source"))
        return F.cross_entropy(outputs, batch.source_y), outputs

    def run_length(self) -> float:
        """One batch."""
        return 1.0

    # ---- the fit

    def fit_data(self, data: Any) -> None:  # noqa: ANN401
        """Computes or finds the features of both domains, fits the maps, then the classifier."""
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
            given = [(features.cpu(), batch.y.cpu()) for batch, features in features_of(self, loader())]
            return torch.cat([features for features, _ in given]), torch.cat([labels for _, labels in given])
        digest, labels = hashlib.sha256(str(self.trainer.precision).encode()), []
        for batch in loader():
            labels.append(batch.y.cpu())
            x = batch.x.cpu().contiguous()
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes())

        def computed() -> Iterator[tuple[Tensor, Tensor]]:
            return ((batch.number, features) for batch, features in features_of(self, loader()))

        y = torch.cat(labels)
        found = cached_features(self.backbone, digest.hexdigest(), computed, len(y), self.cache_dir)
        return torch.from_numpy(found), y

    # ---- twins

    def after_restart(self) -> None:
        """Forgets what was fitted."""
        self.fitted_adapter, self.classifier.learned = None, {}

    def unadapted(self) -> AdaptedFeaturesModule:
        """The same classifier on features that stay as they are."""
        networks = copy.deepcopy((self.backbone, self.classifier))
        networks[1].learned = {}
        return AdaptedFeaturesModule(
            networks[0], self.num_classes, None, networks[1], self.validator, self.cache_dir
        )  # fmt: skip

    def take_over(self, other: DomainAdaptationModule) -> None:
        """Answers as another one of the same classifier does, from now on."""
        assert isinstance(other, AdaptedFeaturesModule)
        self.backbone.load_state_dict(other.backbone.state_dict())
        self.fitted_adapter = copy.deepcopy(other.fitted_adapter)
        self.classifier.learned = dict(other.classifier.learned)

    # ---- what is kept

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the maps and what the classifier learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classifier"] = {name: value.cpu() for name, value in self.classifier.learned.items()}
        checkpoint["adapter"] = _learned(self.fitted_adapter)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads the maps and what the classifier learned.

        Raises:
            UserError: a checkpoint of another adapter or classifier.
        """
        super().on_load_checkpoint(checkpoint)
        trained = checkpoint.get("protocol", {}).get("method", {})
        for name, own in (("adapter", _name(self.adapter)), ("classifier", type(self.classifier).__name__)):
            known = str(trained.get(name, own)).partition("(")[0]
            if known != own:
                raise UserError(
                    f"the checkpoint was fitted with the {name} {known}, but this module has {own}: give the {name} "
                    "that it was fitted with."
                )
        self.classifier.learned = dict(checkpoint.get("classifier", {}))
        self.fitted_adapter = _with(self.adapter, checkpoint.get("adapter", {}))

    def protocol(self) -> dict[str, Any]:
        """Also says adapter, classifier and network."""
        arguments = plain_arguments(self.adapter.get_params(deep=False)) if self.adapter is not None else {}
        listed = f"({', '.join(f'{name}={value}' for name, value in arguments.items())})" if arguments else ""
        return super().protocol() | {
            "adapter": _name(self.adapter) + listed,
            "classifier": self.classifier.protocol(),
            "backbone": type(self.backbone).__name__,
        }


def _name(adapter: DomainAdapter | None) -> str:
    return "none" if adapter is None else type(adapter).__name__


def _learned(adapter: DomainAdapter | None) -> dict[str, Tensor]:
    """What a fitted adapter holds, by scikit-learn's convention under names that end with an underscore."""
    found = {} if adapter is None else {name: value for name, value in vars(adapter).items() if name.endswith("_")}
    numbers = {name: value for name, value in found.items() if isinstance(value, np.ndarray | float | int)}
    return {name: torch.from_numpy(np.array(value)) for name, value in numbers.items()} | (
        {} if adapter is None else {"n_features_in_": torch.tensor(adapter.n_features_in_)}
    )


def _with(adapter: DomainAdapter | None, learned: dict[str, Tensor]) -> DomainAdapter | None:
    """A copy that is fitted already."""
    if adapter is None or not learned:
        return None
    found = copy.deepcopy(adapter)
    for name, value in learned.items():
        content: NDArray[Any] | float = value.numpy() if value.dim() else value.item()
        setattr(found, name, content)
    return found
