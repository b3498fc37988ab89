"""Reptile."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, distributed, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_positive
from metatransfer.functional.meta.batching import known_gradients
from metatransfer.functional.meta.inner_loop import all_finite
from metatransfer.functional.meta.inputs import concatenated
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.functional.meta.update_rules import Params, PlainRule, UpdateRule, adam
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.methods.gradient.outer_loop import collect_statistics, report_divergence
from metatransfer.methods.options import EXECUTION, Execution, InnerLoop, check_unused
from metatransfer.nn import Backbone, Head, LinearHead

INNER = InnerLoop(steps=50, lr=0.001, train_steps=5)


class ReptileModule(MAMLModule):
    r"""Reptile (Nichol, Achiam, Schulman 2018, 1803.02999): moves the initialisation towards the adapted weights.

    .. math:: \phi_i = U^k_i(\theta), \qquad \theta \leftarrow \theta + \epsilon\,\frac1T\sum_i(\phi_i - \theta)

    The inner loop is Adam with :math:`\beta_1=0` on mini-batches, and no derivative passes through it. Training uses
    support and query samples together. One task per meta-batch is the serial version of the paper, several the
    batched one.

    The outer gradient is :math:`\theta-\frac1T\sum_i\phi_i`. With plain gradient descent the outer rate is
    :math:`\epsilon`, which the paper lowers from 1 to 0 (``SGD`` at ``lr: 1``, ``LinearLR`` from 1 to 0).
    The logged loss is that of the queries after adaptation.

    Adam's second moments are kept between tasks, as in the authors' code: each task starts from those of the previous
    meta-batch, averaged over its tasks, and evaluation from the last ones. They are buffers and part of the checkpoint.
    In evaluation each step uses the whole support set. The other arguments and the errors are those of
    :class:`MAMLModule`.

    Args:
        inner: the gradient steps, in evaluation on the support set (50 in the paper), in training on the whole task (5
            to 12 in the paper); always first order.
        inner_batch_size: number of random samples per inner step in training; the whole task if ``None``.
        keep_moments: start each task from the second moments of earlier tasks instead of from zeros.
        execution: how the tasks of a meta-batch are computed; ``compile`` is not available.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner: InnerLoop = INNER,
        inner_batch_size: int | None = 10,
        keep_moments: bool = True,
        batch_norm: BatchNormPolicy = "transductive",
        execution: Execution = EXECUTION,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_unused("ReptileModule", "it has no second derivatives", **{"execution.compile": execution.compile})
        super().__init__(backbone, num_outputs, head, inner, batch_norm, execution, optimizer, lr_scheduler)
        check_positive(inner_batch_size=inner_batch_size)
        self.inner_batch_size, self.keep_moments = inner_batch_size, keep_moments
        self.moments = _Moments(dict(self.network.named_parameters())) if keep_moments else None

    def update_rule(self) -> UpdateRule | PlainRule:
        """Adam without momentum."""
        kept = {} if self.moments is None else {"squares": self.moments(), "taken": self.moments.taken}
        return adam(self.inner.lr_in(self.training), betas=(0.0, 0.999), **kept)

    def takes_constants(self) -> bool:
        """Always true."""
        return True

    def training_loss(self, episode: Episode) -> tuple[Tensor, Any]:
        """The query loss after adaptation, with the Reptile gradient."""
        collect_statistics(self, episode.support_x)
        x = concatenated(episode.support_x, episode.query_x, 1)
        y = torch.cat([episode.support_y, episode.query_y], dim=1)
        start = self.adapted_parameters()
        with torch.no_grad():
            rows = self._draw_rows(*y.shape[:2])
            state = self.adapt_through(x, y, rows=rows)[-1]
            if not all_finite(state.params):
                trajectory = self.adapt_through(x, y, trajectory=True, rows=rows)
                report_divergence([tasks.params for tasks in trajectory], self.inner.lr_in(self.training))
            loss, outputs = self.outer_loss([state], episode)
            away = [value - state.params[name].mean(0) for name, value in start.items()]
            if self.moments is not None:
                self.moments.keep(state.memory[1], state.steps)
        return known_gradients(loss, away, list(start.values())), outputs

    def _draw_rows(self, tasks: int, samples: int) -> Tensor | None:
        """Indices ``(T, steps, B)`` of the samples of each step: consecutive shuffled passes over the task."""
        size, steps = self.inner_batch_size, self.inner.steps_in(True)
        if size is None or size >= samples or not steps:
            return None
        passes = -(-steps * size // samples)
        order = torch.rand(tasks, passes, samples, device=self.device).argsort(-1).flatten(1)
        return order[:, : steps * size].reshape(tasks, -1, size)

    def protocol(self) -> dict[str, Any]:
        """Adds the size of a mini-batch and the inner optimiser."""
        return super().protocol() | {
            "first_order": True,
            "inner_batch_size": self.inner_batch_size,
            "inner_optimizer": "Adam, beta1=0, second moments " + ("kept" if self.keep_moments else "afresh"),
        }


class _Moments(nn.Module):
    """Second moments of gradients by parameter name, and the number of steps they were accumulated over."""

    taken: Tensor

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.register_buffer("taken", torch.zeros((), dtype=torch.float64))
        self._keys = {name: name.replace(".", "/") for name in params}
        for name, key in self._keys.items():
            self.register_buffer(key, torch.zeros_like(params[name]))

    def forward(self) -> Params:
        return {name: getattr(self, key) for name, key in self._keys.items()}

    def keep(self, found: Params, steps: int) -> None:
        """Stores the moments ``(T, *shape)`` after ``steps`` more steps, averaged over tasks."""
        for name, value in found.items():
            mean = value.mean(0)
            if distributed.is_available() and distributed.is_initialized():  # otherwise processes would differ
                distributed.all_reduce(mean)
                mean = mean / distributed.get_world_size()
            getattr(self, self._keys[name]).copy_(mean)
        self.taken += steps
