"""ADDA."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from metatransfer.batches import DomainBatch
from metatransfer.checks import check_fraction
from metatransfer.functional.meta.replicas import deep_copy
from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation, Normalization
from metatransfer.methods.domain.alternating import AlternatingModule, frozen
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.nn import Backbone, DomainDiscriminator, Head, LinearHead
from metatransfer.nn.blocks.domain_norm import Side


class ADDAModule(AlternatingModule):
    r"""Adversarial discriminative domain adaptation (Tzeng et al. 2017, 1702.05464): an encoder for each domain.

    .. math:: \min_{f_s, h} \mathcal L_s, \qquad\text{then in turn}\quad
              \min_d \tfrac12\bigl(\overline{\ell(d(f_s(x^s)), 1)} + \overline{\ell(d(f_t(x^t)), 0)}\bigr), \qquad
              \min_{f_t} \overline{\ell(d(f_t(x^t)), 1)}

    In the first part of a run, one encoder and the classifier are trained on the source. In the second part both are
    frozen in evaluation mode. The target's encoder :math:`f_t` starts from the source's and is trained, with inverted
    labels, to fool a discriminator :math:`d` (:math:`\ell` is the logistic loss). Each encoder normalises batches of
    its own domain; dropout is off in the second part, since dropout in one encoder only would reveal the domain.

    The accuracy on the source does not change in the second part, so a ``source_floor`` cannot detect there that
    adaptation fails. The other arguments are those of :class:`DomainAdaptationModule`.

    Args:
        backbone: the network; after training it is the target's encoder.
        discriminator: creates the discriminator from the size of the features.
        pretrain_fraction: fraction of the run's batches in the first part.
        adaptation: see :class:`DomainAdaptationModule`; only ``"separate"`` normalisation.
        optimizer: creates the optimiser of the first part.
        adversarial_optimizer: creates those of the target's encoder and the discriminator; defaults to ``optimizer``.
        lr_scheduler: creates a scheduler for each optimiser, stepped once per epoch.

    Attributes:
        source_backbone: the source's encoder in the second part.
        adapting: whether the second part has begun.

    Raises:
        UserError: ``pretrain_fraction`` outside [0, 1), or an error of :class:`DomainAdaptationModule`.
    """

    normalizations: ClassVar[tuple[Normalization, ...]] = ("separate",)
    adapting: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        discriminator: Callable[[int], DomainDiscriminator] = DomainDiscriminator,
        pretrain_fraction: float = 0.5,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        adversarial_optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, head, adaptation, optimizer, lr_scheduler)
        check_fraction(pretrain_fraction=pretrain_fraction)
        self.pretrain_fraction = pretrain_fraction
        self.adversarial_optimizer = adversarial_optimizer or optimizer
        self.discriminator = discriminator(backbone.out_features)
        self.source_backbone = deep_copy(backbone).requires_grad_(False)
        self.source_backbone.__dict__.pop("weights_report", None)  # the file is read once
        self.register_buffer("adapting", torch.tensor(False))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Keeps what is frozen in evaluation mode, including its BatchNorm and dropout layers."""
        super().train(mode)
        if not hasattr(self, "adapting"):  # under construction
            return self
        self.source_backbone.eval()
        if self.adapting:
            self.head.eval()
            self.backbone.eval()  # noise that the source's features do not have would tell the domains apart
            for part in self.backbone.modules():
                if isinstance(part, _BatchNorm):
                    part.train(mode)
        return self

    def encode(self, x: Tensor, domain: Side) -> Tensor:
        """Features of samples, by the encoder of their domain."""
        own = self.source_backbone if domain == "source" and self.adapting else self.backbone
        return own(x)  # type: ignore[no-any-return]

    def make_optimizers(self) -> list[Optimizer]:
        """Of the source's encoder and the classifier, of the target's encoder, and of the discriminator."""
        encoder, discriminator = (self.trainable(getattr(self, name), name) for name in ("backbone", "discriminator"))
        first = self.optimizer([*encoder, *(p for p in self.head.parameters() if p.requires_grad)])
        return [first, self.adversarial_optimizer(encoder), self.adversarial_optimizer(discriminator)]

    def training_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """The loss on the source, which the first part minimises."""
        logits = self.head(self.encode(batch.source_x, "source"))
        return self.source_loss(logits, batch), logits

    def discriminator_loss(self, source: Tensor, target: Tensor) -> Tensor:
        """The discriminator's loss on features ``(N, E)`` and ``(M, E)``; only its parameters get a gradient."""
        mine, other = self._domain_logits(source.detach()), self._domain_logits(target.detach())
        right = ((mine.detach() > 0).float().mean() + (other.detach() <= 0).float().mean()) / 2
        self.log("train/discriminator_accuracy", right, batch_size=len(target))
        return (F.softplus(-mine).mean() + F.softplus(other).mean()) / 2

    def encoder_loss(self, target: Tensor) -> Tensor:
        """The loss of the target's encoder on features ``(M, E)``; the discriminator gets no gradient."""
        with frozen(self.discriminator):
            return F.softplus(-self._domain_logits(target)).mean()

    def _domain_logits(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.discriminator(features)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def learn(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """A step on the source; in the second part, one of the discriminator and one of the target's encoder."""
        if not self.adapting and self.progress >= self.pretrain_fraction:
            self.start_adapting()
        if not self.adapting:
            loss, outputs = self.training_loss(batch)
            self.descend(loss, 0)
            return loss.detach(), outputs.detach()
        with torch.no_grad():
            source = self.encode(batch.source_x, "source")
            outputs = self.head(source)
            loss = self.source_loss(outputs, batch)
        target = self.encode(batch.target_x, "target")
        self.descend(self.discriminator_loss(source, target), 2)
        fooling = self.encoder_loss(target)
        self.descend(fooling, 1)
        self.log("train/transfer_loss", fooling.detach(), batch_size=len(target))
        return loss, outputs

    def start_adapting(self, adapting: bool = True) -> None:
        """Begins the second part: freezes the classifier and a copy of the network; ``False`` returns to the first."""
        self.source_backbone.load_state_dict(self.backbone.state_dict())
        self.adapting.fill_(adapting)
        self.train(self.training)

    def on_train_start(self) -> None:
        """Restarts with the first part, unless a run is resumed."""
        super().on_train_start()
        if not self.trainer.global_step:  # a second fit begins anew
            self.after_restart()
        self.train(self.training)

    def after_restart(self) -> None:
        """Returns to the first part, with one encoder for both domains."""
        self.start_adapting(False)

    def take_over(self, other: DomainAdaptationModule) -> None:
        """Copies both encoders and the head."""
        super().take_over(other)
        source = other.source_backbone if isinstance(other, ADDAModule) and other.adapting else other.backbone
        self.source_backbone.load_state_dict(source.state_dict())

    def protocol(self) -> dict[str, Any]:
        """Adds the length of the first part."""
        return super().protocol() | {"train_pretrain_fraction": self.pretrain_fraction}
