"""VERSA: an amortised distribution of the weights of a linear classifier."""

import math
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.checks import check_count
from metatransfer.functional.meta.prototypes import class_count, class_prototypes
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone
from metatransfer.nn.blocks import ZeroLinear

_START = -4.0  # initial logarithm of the variances


class VersaModule(EmbeddingModule[Tensor]):
    r"""VERSA (Gordon et al. 2019, 1805.09921): classifier weights from a Gaussian that a network predicts.

    For each class, a network maps the mean embedding :math:`c_k` of its support samples to mean and variance of its
    weights and its bias. The prediction is the mean probability over ``L`` samples of them,

    .. math:: p(y\mid x) = \frac1L\sum_l \operatorname{softmax}_y\big(w_{lk}^\top f(x) + b_{lk}\big),\qquad
              (w_{lk}, b_{lk})\sim N\big(\mu(c_k), \sigma^2(c_k)\big),

    and the outputs are its logarithms. Training minimises their cross-entropy, with new samples in each step. In
    evaluation the samples are always the same, so that predictions can be repeated. There, classes take their random
    numbers in the order of their predicted biases, so that renaming classes changes nothing.

    Unlike in the paper, the predicted mean starts at the linear classifier that is equivalent to distances to class
    means, :math:`w = 2s c_k`, :math:`b = -s\lVert c_k\rVert^2`, :math:`s = E^{-1/2}`, to which the network adds. This
    shortens the training.

    Args:
        backbone: the embedding ``f``.
        num_samples: number ``L`` of samples, in training and evaluation.
        hidden: width of the two hidden layers of the network.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: a number below 1.
    """

    cannot_export = (
        "it draws weights for as many classes as the labels name, which torch.export cannot trace: adapt it, and "
        "export the predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_samples: int = 10,
        hidden: int = 128,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_count(num_samples=num_samples, hidden=hidden)
        self.num_samples, size = num_samples, backbone.out_features
        self.amortization = nn.Sequential(
            nn.Linear(size, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), ZeroLinear(hidden, 2 * (size + 1))
        )

    def weight_distribution(self, support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(T, W, E + 1)`` of the weights and the bias of each class."""
        means = class_prototypes(support, labels, class_count(labels))
        change, log_variance = self.amortization(means).chunk(2, -1)
        scale = 1 / math.sqrt(means.shape[-1])
        start = torch.cat([2 * scale * means, -scale * means.square().sum(-1, keepdim=True)], -1)
        return start + change, (0.5 * (_START + log_variance)).exp()

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> Tensor:
        """Samples of the weights and the bias of each class, ``(T, L, W, E + 1)``."""
        wide = torch.promote_types(support.dtype, torch.float32)
        with torch.autocast(support.device.type, enabled=False):
            mean, deviation = self.weight_distribution(support.to(wide), labels)
            return mean.unsqueeze(1) + deviation.unsqueeze(1) * self._noise(mean)

    def _noise(self, mean: Tensor) -> Tensor:
        """Standard normal numbers ``(T, L, W, E + 1)``; in evaluation the same ones in every task."""
        tasks, ways, size = mean.shape
        if self.training:
            return torch.randn(tasks, self.num_samples, ways, size, device=mean.device, dtype=mean.dtype)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(ways, self.num_samples, size, generator=generator).to(mean)
        rank = mean[..., -1].argsort(1).argsort(1)
        return noise[rank].transpose(1, 2)

    def predict_embeddings(self, state: Tensor, queries: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, ``(T, Q, W)``."""
        with torch.autocast(queries.device.type, enabled=False):  # probabilities of many samples in half precision
            weight, bias = state[..., :-1], state[..., -1]
            logits = queries.to(state.dtype).unsqueeze(1) @ weight.transpose(-1, -2) + bias.unsqueeze(2)
            return logits.log_softmax(-1).logsumexp(1) - math.log(self.num_samples)

    def protocol(self) -> dict[str, Any]:
        """Adds the number of samples."""
        return super().protocol() | {"num_samples": self.num_samples}
