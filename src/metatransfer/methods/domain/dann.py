"""DANN."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.methods.domain.adaptation import DEFAULT, RAMP, Adaptation, Pair, Ramp
from metatransfer.methods.domain.base import DomainAdaptationModule
from metatransfer.nn import Backbone, DomainDiscriminator, Head, LinearHead, reverse_gradient


class DANNModule(DomainAdaptationModule):
    r"""Domain-adversarial training (Ganin et al. 2016, 1505.07818): features from which the domain cannot be predicted.

    .. math:: \min_{f,h}\max_{d}\ \frac1N\sum_i \mathcal L\bigl(h(f(x^s_i)), y^s_i\bigr)
              - \lambda_p\,\tfrac12\Bigl(\frac1N\sum_i \ell_d(x^s_i) + \frac1M\sum_j \ell_d(x^t_j)\Bigr),
              \qquad \lambda_p = \lambda\Bigl(\frac{2}{1+e^{-\gamma p}} - 1\Bigr)

    Here :math:`\ell_d` is the logistic loss of a domain discriminator :math:`d`. A gradient reversal layer trains both
    at once: the discriminator with weight 1 throughout, the features with the gradient scaled by :math:`-\lambda_p`,
    where :math:`p` is the fraction of the run's steps done so far. The paper uses SGD with a learning rate of 0.01,
    momentum of 0.9 and ``adaptation.annealing: Annealing``. The other arguments are those of
    :class:`DomainAdaptationModule`.

    Args:
        discriminator: creates the discriminator from the size of the features.
        ramp: the largest :math:`\lambda` and how fast :math:`\lambda_p` rises to it.
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
        super().__init__(backbone, num_classes, head, adaptation, optimizer, lr_scheduler)
        self.ramp = ramp
        self.discriminator = discriminator(backbone.out_features)

    @property
    def strength(self) -> float:
        r"""The current strength of the adversary, :math:`\lambda_p`."""
        return self.ramp.at(self.progress)

    def discriminated(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Inputs of the discriminator, ``(N, E)`` of the source and ``(M, E)`` of the target."""
        return pair.source, pair.target

    def sample_weights(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        """Weights of samples for the discriminator, ``(N,)`` and ``(M,)`` with mean 1; ``None`` for equal ones."""
        return None

    def transfer_loss(self, pair: Pair) -> Tensor | None:
        """The discriminator's loss, averaged over the domains, with the gradient into the features reversed."""
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
        """Adds the adversary's schedule."""
        return super().protocol() | {"train_max_lambda": self.ramp.max_lambda, "train_gamma": self.ramp.gamma}
