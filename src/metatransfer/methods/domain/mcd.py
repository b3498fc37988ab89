"""MCD."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from metatransfer.batches import DomainBatch
from metatransfer.checks import check_positive
from metatransfer.functional.domain.discrepancy import classifier_discrepancy
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation
from metatransfer.methods.domain.alternating import AlternatingModule, frozen
from metatransfer.nn import Backbone, Head, LinearHead


class HeadPair(Head):
    """Two heads of one kind, whose outputs are averaged.

    Args:
        head: creates each from ``(in_features, out_features)``, with different initial weights.
        in_features: size of the features.
        out_features: number of classes.
    """

    def __init__(self, head: Callable[[int, int], Head], in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.first, self.second = head(in_features, out_features), head(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``."""
        first, second = self.both(features)
        return (first + second) / 2

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of both heads."""
        return self.first(features), self.second(features)


class MCDModule(AlternatingModule):
    r"""Maximum classifier discrepancy (Saito et al. 2018, 1712.02560): features on which two classifiers agree.

    .. math:: \text{A: } \min_{f, h_1, h_2} \mathcal L_s, \qquad
              \text{B: } \min_{h_1, h_2} \mathcal L_s - \mathcal D_t, \qquad
              \text{C: } \min_f \mathcal D_t \quad (n \text{ times})

    The classifiers detect target samples far from the source by disagreeing on them; the features are trained to remove
    the disagreement. :math:`\mathcal L_s` is the sum of both cross-entropies on the source, :math:`\mathcal D_t` the
    mean absolute difference of both predictions on the target. The three steps are taken for each batch. The logits are
    the mean of both classifiers' logits. One optimiser holds all parameters and moves those that the step gives a
    gradient; since optimisers keep their state per parameter, this equals separate optimisers for features and
    classifiers. The other arguments are those of :class:`DomainAdaptationModule`.

    Args:
        backbone: the network, the paper's generator.
        head: creates each of the two label predictors from ``(in_features, num_classes)``.
        num_generator_steps: :math:`n`.

    Raises:
        UserError: ``num_generator_steps`` below 1, or an error of :class:`DomainAdaptationModule`.
    """

    head: HeadPair

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        num_generator_steps: int = 4,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        pair = functools.partial(HeadPair, head)
        super().__init__(backbone, num_classes, pair, adaptation, optimizer, lr_scheduler)
        check_positive(num_generator_steps=num_generator_steps)
        self.num_generator_steps = num_generator_steps
        # where nothing mixes the samples of a batch, one side need not be there for the other
        has_norm = any(isinstance(part, _BatchNorm) for part in backbone.modules())
        self._together = self.normalization == "joint" and has_norm

    def make_optimizers(self) -> list[Optimizer]:
        """One for all parameters."""
        return [self.optimizer([*self.trainable(self.backbone, "backbone"), *self.trainable(self.head, "heads")])]

    def source_losses(self, features: Tensor, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The sum of both classifiers' cross-entropies, and the mean logits ``(N, C)``."""
        first, second = self.head.both(features)
        return self.source_loss(first, batch) + self.source_loss(second, batch), (first + second) / 2

    def discrepancy(self, features: Tensor) -> Tensor:
        """The disagreement of the classifiers on features ``(M, E)`` of the target, a scalar."""
        wide = torch.promote_types(features.dtype, torch.float32)
        first, second = (logits.softmax(-1, dtype=wide) for logits in self.head.both(features))
        return classifier_discrepancy(first, second)

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The loss of step A."""
        source = self.encode_pair(batch)[0] if self._together else self.encode(batch.source_x, "source")
        return self.source_losses(source, batch)

    def learn(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The steps A, B and C."""
        loss, outputs = self.training_loss(batch)
        self.descend(loss)
        with torch.no_grad():
            source, target = self.encode_pair(batch)
        apart = self.discrepancy(target)
        self.descend(self.source_losses(source, batch)[0] - apart)
        for _ in range(self.num_generator_steps):
            with frozen(self.head):
                moved = self.encode_pair(batch)[1] if self._together else self.encode(batch.target_x, "target")
                together = self.discrepancy(moved)
            self.descend(together)
        numbers = {"train/discrepancy": together.detach(), "train/largest_discrepancy": apart.detach()}
        self.log_dict(numbers, batch_size=len(batch.target_x))
        return loss.detach(), outputs.detach()

    def _take_over_head(self, head: nn.Module) -> None:
        """Copies a pair of heads, or one head into both."""
        for mine in (self.head,) if isinstance(head, HeadPair) else (self.head.first, self.head.second):
            mine.load_state_dict(head.state_dict())

    def protocol(self) -> dict[str, Any]:
        """Adds the number of generator steps."""
        return super().protocol() | {"train_generator_steps": self.num_generator_steps}
