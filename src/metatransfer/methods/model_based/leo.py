"""Latent embedding optimisation."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_count, check_fraction, check_not_negative, check_positive
from metatransfer.functional.losses import episode_losses, mask_absent_classes
from metatransfer.functional.meta.gradients import gradient_of
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.functional.meta.prototypes import class_count, class_prototypes
from metatransfer.methods.embedding import EmbeddingModule
from metatransfer.nn import Backbone


@dataclass(frozen=True)
class LEOSteps:
    """Gradient steps on a support set.

    Attributes:
        latent_steps: number of steps in the latent space.
        latent_lr: initial value of their learned rate (1 in the paper).
        steps: number of steps on the decoded weights.
        lr: initial value of their learned rate (0.001 in the paper).

    Raises:
        UserError: an argument is out of range.
    """

    latent_steps: int = 5
    latent_lr: float = 1.0
    steps: int = 5
    lr: float = 0.001

    def __post_init__(self) -> None:
        check_not_negative(**{"steps.latent_steps": self.latent_steps, "steps.steps": self.steps})
        check_positive(**{"steps.latent_lr": self.latent_lr, "steps.lr": self.lr})


@dataclass(frozen=True)
class LEOPenalties:
    r"""Weights of the terms that are added to the query loss.

    Attributes:
        kl: :math:`\beta`, of the divergence of the latent codes from a standard normal distribution.
        encoder: :math:`\gamma`, of the squared distance between latent codes before and after their steps.
        orthogonality: :math:`\lambda_2`, of the squared correlations between the rows of the decoder.

    Raises:
        UserError: a weight is negative.
    """

    kl: float = 0.001
    encoder: float = 0.001
    orthogonality: float = 0.1

    def __post_init__(self) -> None:
        names = "kl", "encoder", "orthogonality"
        check_not_negative(**{f"penalties.{name}": getattr(self, name) for name in names})


class LEOState(NamedTuple):
    """What is learned of ``T`` tasks.

    Attributes:
        weights: of the output layer ``(T, W, E)``.
        divergence: of the latent codes from the standard normal distribution ``(T,)``, mean over classes and units.
        moved: squared distance between the latent codes before and after their steps ``(T,)``, mean over classes and
            units.
    """

    weights: Tensor
    divergence: Tensor
    moved: Tensor


STEPS, PENALTIES = LEOSteps(), LEOPenalties()


class LEOModule(EmbeddingModule[LEOState]):
    r"""LEO (Rusu et al. 2019, 1807.05960): gradient steps on a latent code of each class, decoded to its weights.

    .. math:: z_n \sim \mathcal N(\mu^e_n, \sigma^e_n), \qquad
              \mu^e_n, \log\sigma^e_n = \frac1{|S_n||S|}\sum_{i\in S_n}\sum_{j\in S}
              g_r\bigl(g_e(f(x_i)), g_e(f(x_j))\bigr), \qquad w_n \sim \mathcal N\bigl(\mu^d(z_n), \sigma^d(z_n)\bigr)

    .. math:: z_n \leftarrow z_n - \alpha\nabla_{z_n}\mathcal L_S(w(z)), \quad\text{then}\quad
              w_n \leftarrow w_n - \eta\nabla_{w_n}\mathcal L_S(w), \qquad \text{logits}\ w_n\cdot f(x)

    The outer loss is that of the queries plus ``penalties``. The rates :math:`\alpha` and :math:`\eta` are learned. In
    training, codes and weights are drawn, with one noise of the weights for all steps of a task; in evaluation they are
    the means. The features are scaled to a root mean square of 1; those of the paper have length 1, with which training
    takes more steps. The :math:`L_2` penalty of the paper is the optimiser's ``weight_decay``, its gradient clipping
    the trainer's ``gradient_clip_val``.

    Args:
        backbone: the features ``f``.
        latent_size: size of a latent code.
        dropout: dropout probability of the features that the encoder sees.
        steps: the gradient steps on a support set.
        penalties: weights of the terms that are added to the query loss.
        freeze_backbone: whether the backbone keeps its weights and BatchNorm statistics, as in the paper. Give it
            pretrained weights.
        optimizer: creates the optimiser.
        lr_scheduler: creates its scheduler.

    Raises:
        UserError: an argument is out of range.
    """

    cannot_export = (
        "its inner loop takes gradients of the support loss, which torch.export cannot trace: adapt it, and export the "
        "predictor"
    )

    def __init__(
        self,
        backbone: Backbone,
        latent_size: int = 64,
        dropout: float = 0.0,
        steps: LEOSteps = STEPS,
        penalties: LEOPenalties = PENALTIES,
        freeze_backbone: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler)
        check_count(latent_size=latent_size)
        check_fraction(dropout=dropout)
        self.steps, self.penalties, self.freeze_backbone = steps, penalties, freeze_backbone
        if freeze_backbone:
            backbone.requires_grad_(False)
        self.encoder = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.out_features, latent_size, bias=False))
        wide = 2 * latent_size
        self.relation = nn.Sequential(
            nn.Linear(wide, wide, bias=False), nn.ReLU(), nn.Linear(wide, wide, bias=False), nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
        )  # fmt: skip
        self.decoder = nn.Linear(latent_size, 2 * backbone.out_features, bias=False)
        self.log_rates = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the rates of the steps."""
        with torch.no_grad():
            self.log_rates.copy_(torch.tensor([self.steps.latent_lr, self.steps.lr]).log())

    def embed(self, x: Inputs) -> Tensor:
        """Features of root mean square 1, ``(T, N, E)``."""
        return F.rms_norm(super().embed(x), [self.backbone.out_features])

    def fit_embeddings(self, support: Tensor, labels: Tensor) -> LEOState:
        """Encodes the classes, takes the steps on the latent codes and then on the decoded weights."""
        with torch.autocast(support.device.type, enabled=False):
            support = support.to(self.log_rates.dtype)
            mean, log_std = self._encoded(support, labels)
            start = _drawn(mean, log_std, self._noise(mean))
            noise = self._noise(mean.new_empty(*mean.shape[:2], support.shape[-1]))

            def code_loss(codes: Tensor, support: Tensor, labels: Tensor) -> Tensor:
                return _loss(self._decoded(codes, noise), support, labels)

            rates, steps, codes = self.log_rates.exp(), self.steps, start
            for _ in range(steps.latent_steps):
                codes = codes - rates[0] * gradient_of(code_loss, codes, support, labels)
            weights = self._decoded(codes, noise)
            for _ in range(steps.steps):
                weights = weights - rates[1] * gradient_of(_loss, weights, support, labels)
            divergence = ((2 * log_std).exp() + mean.square() - 1) / 2 - log_std
            moved = (codes.detach() - start).square()
            return LEOState(weights, divergence.mean((1, 2)), moved.mean((1, 2)))

    def predict_embeddings(self, state: LEOState, queries: Tensor) -> Tensor:
        """Logits ``(T, Q, W)`` of a linear layer."""
        with torch.autocast(queries.device.type, enabled=False):
            return queries.to(state.weights.dtype) @ state.weights.transpose(1, 2)

    def _encoded(self, support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation ``(T, W, latent_size)`` of the code of each class."""
        codes = self.encoder(support)
        shape = (*codes.shape[:2], *codes.shape[1:])  # (T, S, S, latent_size)
        pairs = torch.cat([codes.unsqueeze(2).expand(shape), codes.unsqueeze(1).expand(shape)], -1)
        related = self.relation(pairs).mean(2)
        mean, log_std = class_prototypes(related, labels, class_count(labels)).chunk(2, -1)
        return mean, log_std

    def _decoded(self, codes: Tensor, noise: Tensor | None) -> Tensor:
        """Weights ``(T, W, E)`` of latent codes; they start with the deviation of Glorot's initialisation."""
        mean, log_std = self.decoder(codes).chunk(2, -1)
        return _drawn(mean, log_std + math.log(2 / (mean.shape[1] + mean.shape[2])) / 2, noise)

    def _noise(self, like: Tensor) -> Tensor | None:
        return torch.randn_like(like) if self.training else None

    def training_loss(self, batch: Episode) -> tuple[Tensor, Tensor]:
        """The query loss with the penalties, and the outputs for the queries."""
        shots = batch.support_y.shape[1]
        embedded = self.embed(concatenated(batch.support_x, batch.query_x, 1))
        state = self.fit_embeddings(embedded[:, :shots], batch.support_y)
        outputs = mask_absent_classes(self.predict_embeddings(state, embedded[:, shots:]), batch.support_y)
        weight = self.penalties
        penalty = weight.kl * state.divergence.mean() + weight.encoder * state.moved.mean()
        return self.loss(outputs, batch.query_y) + penalty + weight.orthogonality * self.correlation(), outputs

    def correlation(self) -> Tensor:
        """Mean squared correlation (cosine) between different rows of the decoder, a scalar."""
        rows = F.normalize(self.decoder.weight, dim=1)
        return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()

    def protocol(self) -> dict[str, Any]:
        """Adds the steps."""
        return super().protocol() | {"latent_steps": self.steps.latent_steps, "inner_steps": self.steps.steps}


def _loss(weights: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """The sum over tasks of the mean cross-entropy of the support set."""
    return episode_losses(support @ weights.transpose(1, 2), labels).sum()


def _drawn(mean: Tensor, log_std: Tensor, noise: Tensor | None) -> Tensor:
    return mean if noise is None else mean + log_std.exp() * noise
