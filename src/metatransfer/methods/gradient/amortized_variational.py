"""Amortised variational inference over all adapted weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_count, check_not_negative, check_positive
from metatransfer.functional.losses import episode_loss, is_regression, mask_absent_classes
from metatransfer.functional.meta import BatchNormPolicy, Forward, Params
from metatransfer.functional.meta.variational import gaussian_divergence, gaussian_weights, standard_noise
from metatransfer.methods.gradient.base import AdaptedTasks
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LearnedTensors, LinearHead

_VARIANCE, _NOISE = "log_variance:", "noise:"  # prefixes of the names that adapt_tasks and the network see
_QUERIES = 2**31  # the stream of the queries, after those of the inner steps


@dataclass(frozen=True)
class Variational:
    r"""Posterior distribution over the weights of a task.

    Attributes:
        initial_std: initial standard deviation of every weight under the prior.
        samples: number of networks that are drawn in each inner step, and for the queries in training.
        eval_samples: number of networks that are drawn for the queries in evaluation.
        inner_kl_weight: weight :math:`\beta` of the divergence in the inner loop; 1 gives the exact bound. The paper
            had to lower it for few-shot tasks. The steps are stable as long as :math:`\alpha\beta/(\tau^2|S|)`, with
            the prior's variance :math:`\tau^2`, is below 2.
        kl_weight: the same in the outer loss.

    Raises:
        UserError: an argument is out of range.
    """

    initial_std: float = 0.02
    samples: int = 2
    eval_samples: int = 10
    inner_kl_weight: float = 0.001
    kl_weight: float = 0.001

    def __post_init__(self) -> None:
        check_positive(**{"variational.initial_std": self.initial_std})
        names = "samples", "eval_samples"
        check_count(1, 10_000, **{f"variational.{name}": getattr(self, name) for name in names})
        names = "inner_kl_weight", "kl_weight"
        check_not_negative(**{f"variational.{name}": getattr(self, name) for name in names})


INNER, VARIATIONAL = InnerLoop(steps=5, lr=0.1), Variational()


class AmortizedVariationalModule(MAMLModule):
    r"""Amortised Bayesian meta-learning (Ravi, Beatson 2019, ICLR): a Gaussian over all adapted weights.

    .. math:: \mathcal L_D(\lambda) = \frac1{|D|}\Bigl(-\mathbb E_{w\sim q_\lambda}\log p(D\,|\,w)
              + \beta\,\mathrm{KL}(q_\lambda\,\Vert\,p_\theta)\Bigr), \qquad
              \lambda_i^{(0)} = \theta,\quad
              \lambda_i^{(t+1)} = \lambda_i^{(t)} - \alpha\nabla\mathcal L_{S_i}(\lambda_i^{(t)}), \qquad
              \min_\theta \frac1T\sum_i \mathcal L_{Q_i}(\lambda_i^{(K)})

    :math:`\theta` are the mean and the log-variance of every weight under the prior, :math:`\lambda_i` those of the
    posterior of a task. Weights are drawn by the reparametrisation of Kingma, Welling 2014 (1312.6114). The prediction
    is the mean of the class probabilities over ``variational.eval_samples`` networks; for float targets it is the mean
    of their values. In evaluation the noise is fixed; in training each meta-batch has its own, which its tasks share.

    Differences from the paper: whole networks are drawn instead of activations (its local reparametrisation and
    flipout), the outer bound is over the queries instead of support and queries, and the hyper-prior, whose weight is
    1 / (number of training tasks), is left out. The other arguments and errors are those of :class:`MAMLModule`.

    Args:
        inner: the gradient steps on a support set, from the prior.
        variational: prior, number of samples and weights of the divergence.
        execution: how the tasks of a meta-batch are computed; ``compile`` is not available.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        variational: Variational = VARIATIONAL,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_unused(type(self).__name__, "its weights are random", **{"execution.compile": execution.compile})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        self.variational = variational
        shapes = {name: value.shape for name, value in super().adapted_parameters().items()}
        self.log_variances = LearnedTensors(shapes, 2 * math.log(variational.initial_std))
        self._stream = 0

    def adapted_parameters(self) -> Params:
        """Mean and log-variance of every weight that was not frozen when the method was built."""
        spread = self.log_variances()
        means = {name: value for name, value in self.network.named_parameters() if name in spread}
        return means | {_VARIANCE + name: value for name, value in spread.items()}

    def parameters_at(self, step: int) -> Params:
        """The noise of an inner step."""
        return self._noise(step, self.variational.samples)

    def _noise(self, step: int, samples: int) -> Params:
        key = (self._stream if self.training else 0, step)
        return {_NOISE + name: value for name, value in standard_noise(key, samples, self.log_variances()).items()}

    def _forward(self, x: Inputs) -> Forward:
        """Outputs ``(N, samples, ...)`` of the networks drawn, and the divergence from the prior, ``(N,)``."""
        network, prior = super()._forward(x), self.adapted_parameters()
        if not torch.is_grad_enabled():
            prior = {name: value.detach() for name, value in prior.items()}

        def forward(params: Any, x: Inputs, statistics_rows: int | None = None) -> tuple[Tensor, Tensor]:  # noqa: ANN401
            mean, spread, noise = _parts(params)
            drawn = gaussian_weights(mean, spread, noise)
            outputs = torch.stack([network(weights, x, statistics_rows) for weights in drawn], 1)
            divergence = gaussian_divergence(mean, spread, *_parts(prior)[:2])
            return outputs, divergence.expand(outputs.shape[0])

        return forward

    def adapt_through(
        self, support_x: Inputs, support_y: Tensor, trajectory: bool = False, rows: Tensor | None = None
    ) -> list[AdaptedTasks]:
        """Learns the tasks as other methods with an inner loop do, and records which of them are regressions."""
        regresses = torch.full(support_y.shape[:1], is_regression(support_y), device=support_y.device)
        found = super().adapt_through(support_x, support_y, trajectory, rows)
        return [tasks._replace(memory=regresses) for tasks in found]

    def inner_loss(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """The negative evidence lower bound of a support set, per sample."""
        return self._bound(*outputs, targets, self.variational.inner_kl_weight)

    def _bound(self, outputs: Tensor, divergence: Tensor, targets: Tensor, weight: float) -> Tensor:
        """From outputs ``(..., N, samples, C)``, divergences ``(..., N)`` and targets of ``N`` samples."""
        place = targets.dim() - is_regression(targets)
        repeated = targets.unsqueeze(place).expand(*outputs.shape[: place + 1], *targets.shape[place:])
        return episode_loss(outputs, repeated) + weight * divergence.mean() / outputs.shape[place - 1]

    def sampled_outputs(self, state: AdaptedTasks, query_x: Inputs) -> tuple[Tensor, Tensor]:
        """Outputs of networks drawn from the posteriors, and the divergences from the prior.

        Returns:
            ``(T, Q, samples, C)`` and ``(T, Q)``, the same for all queries of a task.
        """
        samples = self.variational.samples if self.training else self.variational.eval_samples
        tasks = len(next(iter(state.params.values())))
        noise = {name: value.expand(tasks, *value.shape) for name, value in self._noise(_QUERIES, samples).items()}
        found: tuple[Tensor, Tensor] = super().predict_tasks(state._replace(params=state.params | noise), query_x)
        return found

    def predict_tasks(self, state: AdaptedTasks, query_x: Inputs) -> Tensor:
        """Logarithms of the mean probabilities ``(T, Q, C)``, or the means of regressed values."""
        return _mean(self.sampled_outputs(state, query_x)[0], state.memory)

    def outer_loss(self, states: list[AdaptedTasks], episode: Episode) -> tuple[Tensor, Tensor]:
        """The negative evidence lower bound of the queries, per query."""
        outputs, divergence = self.sampled_outputs(states[-1], episode.query_x)
        masked = mask_absent_classes(outputs.flatten(1, 2), episode.support_y).view_as(outputs)
        loss = self._bound(masked, divergence, episode.query_y, self.variational.kl_weight)
        return loss, _mean(masked, states[-1].memory)

    def training_loss(self, episode: Episode) -> tuple[Tensor, Any]:
        """The outer objective, with new noise for each batch."""
        self._stream = int(torch.randint(2**31, ()))
        return super().training_loss(episode)

    def protocol(self) -> dict[str, Any]:
        """Adds the numbers of samples and the weights of the divergence."""
        options = self.variational
        return super().protocol() | {
            "train_samples": options.samples,
            "samples": options.eval_samples,
            "inner_kl_weight": options.inner_kl_weight,
            "kl_weight": options.kl_weight,
        }


def _parts(params: Params) -> tuple[Params, Params, Params]:
    """Means, log-variances and noise by the names of the weights."""
    spread, noise = (
        {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        for prefix in (_VARIANCE, _NOISE)
    )
    return {name: params[name] for name in spread}, spread, noise


def _mean(outputs: Tensor, regresses: Any) -> Tensor:  # noqa: ANN401
    """Predictions ``(T, Q, C)`` from outputs ``(T, Q, samples, C)``; ``regresses`` is ``(T,)``, or empty for none."""
    probable: Tensor = outputs.log_softmax(-1).logsumexp(2) - math.log(outputs.shape[2])
    if not isinstance(regresses, Tensor):
        return probable
    return torch.where(regresses.view(-1, 1, 1), outputs.mean(2), probable)
