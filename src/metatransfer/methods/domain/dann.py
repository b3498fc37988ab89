"""DANN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.methods.domain.adaptation import DEFAULT, Adaptation
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.methods.domain.pairs import Pair
from metatransfer.methods.domain.schedules import RAMP, Ramp
from metatransfer.nn import Backbone, DomainDiscriminator, Head, LinearHead, reverse_gradient


class DANNModule(DomainAdaptationModule):
    r"""Domain-adversarial training (Ganin et al. 2016, 1505.07818): features that do not tell the domains apart.

    .. math:: \min_{f,h}\max_{d}\ \frac1N\sum_i \mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr)
              - \lambda_p\,\tfrac12\Bigl(\frac1N\sum_i \ell_d(x^s_i) + \frac1M\sum_j \ell_d(x^t_j)\Bigr),
              \qquad \lambda_p = \lambda\Bigl(\frac{2}{1+e^{-\gamma p}} - 1\Bigr)

    :math:`\ell_d` is the logistic loss of a discriminator :math:`d` of the domains. Gradient reversal does both at
    once: the discriminator is trained with weight 1 at all times, and :math:`\lambda_p` scales the gradient into the
    features alone. :math:`p` is the part of the run's steps that are done. The paper's rates are those of
    ``adaptation.annealing: Annealing`` with stochastic gradient descent, a rate of 0.01 and a momentum of 0.9.

    Args:
        backbone: the network.
        num_classes: number of classes; on the command line taken from the data.
        head: makes the label predictor from ``(in_features, num_classes)``.
        discriminator: makes the discriminator from the size of the features.
        ramp: the largest :math:`\lambda` and how fast :math:`\lambda_p` rises to it.
        adaptation: see :class:`DomainAdaptationModule`.
        optimizer: see :class:`DomainAdaptationModule`.
        lr_scheduler: see :class:`DomainAdaptationModule`.

    Raises:
        UserError: as :class:`DomainAdaptationModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        discriminator: Callable[[int], DomainDiscriminator] = DomainDiscriminator,
        ramp: Ramp = RAMP,
        adaptation: Adaptation = DEFAULT,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone, num_classes=num_classes, head=head, adaptation=adaptation, optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )  # fmt: skip
        self.ramp = ramp
        self.discriminator = discriminator(self.discriminated_features())

    def discriminated_features(self) -> int:
        """Size of what the discriminator looks at."""
        return self.backbone.out_features

    @property
    def strength(self) -> float:
        r"""The adversary's present strength :math:`\lambda_p`."""
        return self.ramp.at(self.progress)

    def discriminated(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the discriminator looks at.

        Args:
            pair: features and logits of a training batch.

        Returns:
            ``(N, E)`` of the source and ``(M, E)`` of the target.
        """
        return pair.source, pair.target

    def sample_weights(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        """How much each sample counts for the discriminator.

        Args:
            pair: features and logits of a training batch.

        Returns:
            ``(N,)`` and ``(M,)``, each of mean 1, or ``None``: all the same.
        """
        return None

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """The discriminator's loss, half of each domain, with the gradient into the features reversed."""
        strength = self.strength
        shown = self.discriminated(pair)
        sizes = [len(part) for part in shown]
        outputs = self.discriminator(reverse_gradient(torch.cat(shown), strength))
        source, target = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).split(sizes)
        losses = F.softplus(-source), F.softplus(target)
        weights = self.sample_weights(pair)
        if weights is not None:
            losses = losses[0] * weights[0], losses[1] * weights[1]
        right = ((source.detach() > 0).float().mean() + (target.detach() <= 0).float().mean()) / 2
        self.log_dict({"train/lambda": strength, "train/discriminator_accuracy": right}, batch_size=sizes[0])
        return (losses[0].mean() + losses[1].mean()) / 2

    def protocol(self) -> dict[str, Any]:
        """Also says the adversary's schedule."""
        return super().protocol() | {"train_max_lambda": self.ramp.max_lambda, "train_gamma": self.ramp.gamma}
