"""CDAN."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.methods.domain.adaptation import DEFAULT, RAMP, Adaptation, Pair, Ramp
from metatransfer.methods.domain.dann import DANNModule
from metatransfer.nn import Backbone, DomainDiscriminator, Head, LinearHead, MultilinearMap


class CDANModule(DANNModule):
    r"""Conditional adversarial domain adaptation (Long et al. 2018, 1705.10667): DANN conditioned on the predictions.

    .. math:: d\bigl(T(f, g)\bigr), \qquad g = \mathrm{softmax}(h(f)), \qquad
              w = \frac{1 + e^{-H(g)}}{\overline{1 + e^{-H(g)}}}

    The input of the discriminator is the multilinear map :math:`T` of features and predictions, see
    :class:`~metatransfer.nn.MultilinearMap`; no gradient flows into the predictions. With
    ``entropy`` (CDAN+E), samples with confident predictions get larger weights :math:`w`, which have mean 1 in each
    domain and no gradient. The other arguments are those of :class:`DANNModule`.

    Args:
        discriminator: creates the discriminator from the size of the map.
        entropy: whether samples are weighted by the entropy of their predictions.
        random_features: size of the random map, used if features times classes exceed 4096.

    Raises:
        UserError: ``random_features`` below 1, or an error of :class:`DANNModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        discriminator: Callable[[int], DomainDiscriminator] = DomainDiscriminator,
        ramp: Ramp = RAMP,
        entropy: bool = False,
        random_features: int = 1024,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        def of_the_map(features: int) -> DomainDiscriminator:
            self.multilinear_map = MultilinearMap(features, self.num_classes, random_features)
            return discriminator(self.multilinear_map.out_features)

        super().__init__(backbone, num_classes, head, of_the_map, ramp, adaptation, optimizer, lr_scheduler)
        self.entropy = entropy

    def discriminated(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The multilinear map of both sides."""
        source: Tensor = self.multilinear_map(pair.source, _predictions(pair.source_logits).to(pair.source.dtype))
        target: Tensor = self.multilinear_map(pair.target, _predictions(pair.target_logits).to(pair.target.dtype))
        return source, target

    def sample_weights(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        """The entropy weights, or ``None``."""
        if not self.entropy:
            return None
        return entropy_weights(pair.source_logits), entropy_weights(pair.target_logits)

    def after_restart(self) -> None:
        """Draws the random map again."""
        self.multilinear_map.reset_parameters()

    def protocol(self) -> dict[str, Any]:
        """Adds the entropy weights and the map."""
        exact, size = self.multilinear_map.feature_matrix is None, self.multilinear_map.out_features
        kind = "outer product" if exact else f"random, {size}"
        return super().protocol() | {"train_entropy_weights": self.entropy, "train_multilinear_map": kind}


def _predictions(logits: Tensor) -> Tensor:
    return logits.detach().softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def entropy_weights(logits: Tensor) -> Tensor:
    r"""Weights :math:`1 + e^{-H}`, divided by their mean; constants to the gradient (CDAN+E, 1705.10667)."""
    weights = 1 + torch.exp(-torch.special.entr(_predictions(logits)).sum(-1))
    return weights / weights.mean()
