"""Model-agnostic meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metatransfer.batches import Episode
from metatransfer.checks import check_choice, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.inner_loop import Batching, Params, UpdateRule, inner_loop, over_tasks, sgd
from metatransfer.functional.losses import episode_scores
from metatransfer.functional.stateless import BatchNormPolicy, Forward, batch_norm_layers, stateless
from metatransfer.methods.base import EpisodicModule
from metatransfer.nn import Backbone, Head, LinearHead


class AdaptedTasks(NamedTuple):
    """What is left of ``T`` tasks after the inner loop.

    Attributes:
        params: adapted parameters by name, each ``(T, *shape)``.
        support_x: ``(T, S, *shape)``; under ``batch_norm="support"`` the queries are normalised by its statistics.
    """

    params: Params
    support_x: Tensor


class MAMLModule(EpisodicModule[AdaptedTasks]):
    r"""MAML (Finn, Abbeel, Levine 2017, 1703.03400): an initialisation from which a few gradient steps learn a task.

    .. math:: \theta_i = \theta - \alpha\nabla_\theta \mathcal L_{S_i}(\theta), \qquad
              \min_\theta \frac1T\sum_i \mathcal L_{Q_i}(\theta_i)

    Query losses are averaged over tasks. The targets' type chooses cross-entropy (labels) or squared error (floats).

    Args:
        backbone: features.
        num_outputs: number of ways, or size of a regression target; on the command line taken from the data.
        head: makes the output layer from ``(in_features, out_features)``.
        inner_steps: gradient steps on a support set, in training and evaluation.
        inner_lr: their rate :math:`\alpha`.
        train_inner_steps: steps in training, where they differ from ``inner_steps``.
        train_inner_lr: rate in training, where it differs from ``inner_lr``.
        first_order: take the inner gradients as constants (FOMAML): cheaper, usually a little worse.
        batch_norm: whose statistics BatchNorm uses: ``"transductive"`` (of the batch at hand, queries by themselves, as
            in the paper), ``"support"`` (of the support set, for its queries too) or ``"running"`` (in evaluation
            running averages, which training collects of the support sets under the unadapted parameters; training
            itself normalises by batch).
        batching: ``"loop"`` over tasks, ``"vmap"`` all at once, or ``"auto"``: the loop for convolutions on a CPU,
            which one task keeps busy, vmap elsewhere.
        chunk_size: with vmap, tasks at a time; all where left out.
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
        inner_steps: int = 1,
        inner_lr: float = 0.4,
        train_inner_steps: int | None = None,
        train_inner_lr: float | None = None,
        first_order: bool = False,
        batch_norm: BatchNormPolicy = "transductive",
        batching: Literal["auto"] | Batching = "auto",
        chunk_size: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if num_outputs is None:
            raise UserError(
                f"{type(self).__name__} needs num_outputs: the number of ways of its episodes, or the size of a "
                "regression target."
            )
        check_positive(num_outputs=num_outputs, inner_lr=inner_lr, train_inner_lr=train_inner_lr, chunk_size=chunk_size)
        if inner_steps < 0 or (train_inner_steps or 0) < 0:
            raise UserError(
                f"inner_steps must be 0 or more, but are {inner_steps} and {train_inner_steps} in training."
            )
        check_choice("batch_norm", batch_norm, ("transductive", "support", "running"))
        check_choice("batching", batching, ("auto", "loop", "vmap"))
        self.backbone = backbone
        self.head = head(backbone.out_features, num_outputs)
        self.num_outputs = num_outputs
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.train_inner_steps = inner_steps if train_inner_steps is None else train_inner_steps
        self.train_inner_lr = inner_lr if train_inner_lr is None else train_inner_lr
        self.first_order = first_order
        self.batch_norm = batch_norm
        self.batching, self.chunk_size = batching, chunk_size
        network = nn.Sequential()
        network.add_module("backbone", self.backbone)
        network.add_module("head", self.head)
        # in a list, so that the state_dict names each parameter once
        self._network = [network]
        self.transductive = batch_norm == "transductive" and bool(batch_norm_layers(network))
        stateless(network, running=batch_norm == "running")  # refuses what the policy cannot do, now

    # ---- what the other members of the family change

    @property
    def network(self) -> nn.Module:
        """Backbone and head in one."""
        return self._network[0]

    def adapted_parameters(self) -> Params:
        """What the inner loop starts from: all parameters that are not frozen, by their names in :attr:`network`.

        A module frozen as a whole, Lightning's idiom for inference, adapts as it did before.
        """
        every: Params = dict(self.network.named_parameters())
        return {name: value for name, value in every.items() if value.requires_grad} or every

    def update_rule(self) -> UpdateRule:
        """One inner step."""
        return sgd(self.train_inner_lr if self.training else self.inner_lr)

    # ---- the method

    def fit_tasks(self, support_x: Tensor, support_y: Tensor) -> AdaptedTasks:
        """Runs the inner loop of every task."""
        if self.batch_norm == "running" and self.training:
            self._collect_statistics(support_x)
        return self._adapt(support_x, support_y, self.train_inner_steps if self.training else self.inner_steps)

    def _adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> AdaptedTasks:
        forward, start, rule = self._forward(support_x), self.adapted_parameters(), self.update_rule()

        def adapt(x: Tensor, y: Tensor) -> Params:
            return inner_loop(forward, start, x, y, steps=steps, update=rule, first_order=self.first_order)

        adapted = over_tasks(
            adapt, support_x, support_y, batching=self._batching(support_x), chunk_size=self.chunk_size
        )
        return AdaptedTasks(adapted, support_x)

    def predict_tasks(self, state: AdaptedTasks, query_x: Tensor) -> Tensor:
        """Outputs of the adapted networks."""
        forward = self._forward(query_x)
        by_support = self.batch_norm == "support"

        def predict(params: Params, support_x: Tensor, x: Tensor) -> Tensor:
            if not by_support:
                return forward(params, x)
            shots = len(support_x)
            return forward(params, torch.cat([support_x, x]), shots)[shots:]

        return over_tasks(
            predict, state.params, state.support_x, query_x,
            batching=self._batching(query_x), chunk_size=self.chunk_size,
        )  # fmt: skip

    def adaptation_curve(self, episode: Episode) -> Tensor:
        """The query score before adaptation and after each inner step.

        Args:
            episode: ``T`` tasks.

        Returns:
            ``(inner_steps + 1, T)``.
        """
        states = (self._adapt(episode.support_x, episode.support_y, steps) for steps in range(self.inner_steps + 1))
        scores = [episode_scores(self.predict_tasks(state, episode.query_x), episode.query_y) for state in states]
        return torch.stack(scores)

    def _forward(self, x: Tensor) -> Forward:
        running = self.batch_norm == "running" and not self.training
        return stateless(self.network, running=running, composite=self._batching(x) == "vmap")

    def _batching(self, x: Tensor) -> Batching:
        if self.batching != "auto":
            return self.batching
        convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in self.network.modules())
        return "loop" if convolves and x.device.type == "cpu" else "vmap"

    @torch.no_grad()
    def _collect_statistics(self, support_x: Tensor) -> None:
        # one plain pass over all support sets; inside the inner loop no buffer may change
        self.network(support_x.flatten(0, 1))

    def protocol(self) -> dict[str, Any]:
        """As of the base, with steps, rates, order and BatchNorm policy."""
        return super().protocol() | {
            "inner_steps": self.inner_steps,
            "inner_lr": self.inner_lr,
            "train_inner_steps": self.train_inner_steps,
            "train_inner_lr": self.train_inner_lr,
            "first_order": self.first_order,
            "batch_norm": self.batch_norm if batch_norm_layers(self.network) else "none",
        }
