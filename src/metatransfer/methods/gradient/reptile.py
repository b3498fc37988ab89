"""Reptile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, distributed, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_positive
from metatransfer.functional.meta.batching import Batching, known_gradients
from metatransfer.functional.meta.inner_loop import all_finite
from metatransfer.functional.meta.stateless import BatchNormPolicy
from metatransfer.functional.meta.update_rules import Params, PlainRule, UpdateRule, adam
from metatransfer.methods.gradient.maml import MAMLModule
from metatransfer.nn import Backbone, Head, LinearHead


class ReptileModule(MAMLModule):
    r"""Reptile (Nichol, Achiam, Schulman 2018, 1803.02999): moves the start towards where tasks take it.

    .. math:: \phi_i = U^k_i(\theta), \qquad \theta \leftarrow \theta + \epsilon\,\frac1T\sum_i(\phi_i - \theta)

    No derivative passes through the inner loop, which is Adam with :math:`\beta_1=0`, on mini-batches. Training learns
    from support and queries alike: there is nothing to hold out. With one task in a meta-batch it is the paper's
    serial version, with several the batched one.

    To any optimiser :math:`\theta-\frac1T\sum_i\phi_i` is the gradient. With plain gradient descent its rate is the
    outer step :math:`\epsilon`, which the paper lowers from 1 to 0 (``SGD`` at ``lr: 1``, ``LinearLR`` from 1 to 0).
    The loss that is shown is that of the queries after adaptation.

    Adam's second moments are kept from task to task, as in the authors' code: each task starts from those that the
    training tasks before it left, averaged over the meta-batch, and evaluation starts from the last ones. They are
    buffers and part of the checkpoint. In evaluation a step takes the whole support set.

    Args:
        backbone: features.
        num_outputs: as in :class:`MAMLModule`.
        head: as in :class:`MAMLModule`.
        inner_steps: gradient steps on a support set in evaluation; the paper takes 50.
        inner_lr: their rate.
        train_inner_steps: steps in training; the paper takes 5 to 12. Those of evaluation where left out.
        train_inner_lr: rate in training, where it differs from ``inner_lr``.
        inner_batch_size: samples of an inner step in training, drawn at random; all of the task where left out.
        keep_moments: start each task from the second moments that earlier ones left; otherwise every task starts
            afresh, with first steps that all have the length ``inner_lr`` in each weight.
        batch_norm: as in :class:`MAMLModule`.
        batching: as in :class:`MAMLModule`.
        chunk_size: as in :class:`MAMLModule`.
        max_inner_norm: as in :class:`MAMLModule`.
        optimizer: makes the outer optimiser.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range, or ``num_outputs`` missing.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int | None = None,
        head: Callable[[int, int], Head] = LinearHead,
        inner_steps: int = 50,
        inner_lr: float = 0.001,
        train_inner_steps: int | None = 5,
        train_inner_lr: float | None = None,
        inner_batch_size: int | None = 10,
        keep_moments: bool = True,
        batch_norm: BatchNormPolicy = "transductive",
        batching: Literal["auto"] | Batching = "auto",
        chunk_size: int | None = None,
        max_inner_norm: float | None = None,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            backbone, num_outputs, head, inner_steps, inner_lr, train_inner_steps, train_inner_lr, True, batch_norm,
            batching, chunk_size, False, False, max_inner_norm, optimizer, lr_scheduler,
        )  # fmt: skip
        check_positive(inner_batch_size=inner_batch_size)
        self.inner_batch_size, self.keep_moments = inner_batch_size, keep_moments
        self.moments = _Moments(dict(self.network.named_parameters())) if keep_moments else None

    def update_rule(self) -> UpdateRule | PlainRule:
        """Adam without momentum."""
        kept = {} if self.moments is None else {"squares": self.moments(), "taken": self.moments.taken}
        return adam(self.train_inner_lr if self.training else self.inner_lr, betas=(0.0, 0.999), **kept)

    def training_loss(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The query loss after adaptation, whose gradient is declared to be where the tasks lead away from."""
        self._collect_statistics(episode.support_x)
        x = torch.cat([episode.support_x, episode.query_x], dim=1)
        y = torch.cat([episode.support_y, episode.query_y], dim=1)
        start = self.adapted_parameters()
        with torch.no_grad():
            rows = self._draw_rows(*y.shape[:2])
            state = self._run(x, y, False, rows)[-1]
            if not all_finite(state.params):
                self._report_divergence(x, y, rows)
            loss, outputs = self.outer_loss([state], episode)
            away = [value - state.params[name].mean(0) for name, value in start.items()]
            if self.moments is not None:
                self.moments.keep(state.memory[1], state.steps)
        return known_gradients(loss, away, list(start.values())), outputs

    def _draw_rows(self, tasks: int, samples: int) -> Tensor | None:
        """The samples ``(T, steps, B)`` of each step: shuffled passes over the task, one after the other."""
        size = self.inner_batch_size
        if size is None or size >= samples or not self.train_inner_steps:
            return None
        passes = -(-self.train_inner_steps * size // samples)
        order = torch.rand(tasks, passes, samples, device=self.device).argsort(-1).flatten(1)
        return order[:, : self.train_inner_steps * size].reshape(tasks, -1, size)

    def protocol(self) -> dict[str, Any]:
        """As of MAML, with the size of a mini-batch and the inner optimiser."""
        return super().protocol() | {
            "inner_batch_size": self.inner_batch_size,
            "inner_optimizer": "Adam, beta1=0, second moments " + ("kept" if self.keep_moments else "afresh"),
        }


class _Moments(nn.Module):
    """Second moments of gradients, by parameter name, and in how many steps they came about."""

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
        """Averages what each task's ``steps`` steps left, ``(T, *shape)``."""
        for name, value in found.items():
            mean = value.mean(0)
            if distributed.is_available() and distributed.is_initialized():  # else the first process's would win
                distributed.all_reduce(mean)
                mean = mean / distributed.get_world_size()
            getattr(self, self._keys[name]).copy_(mean)
        self.taken += steps
