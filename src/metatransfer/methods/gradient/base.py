"""Base of gradient-based methods: an inner loop for each task of a meta-batch, and an outer loss."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metatransfer.batches import Episode, Inputs
from metatransfer.checks import check_choice
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss, mask_absent_classes
from metatransfer.functional.meta.batching import mean_over_parts, over_tasks
from metatransfer.functional.meta.compiled import CompiledLoss
from metatransfer.functional.meta.inner_loop import adapt_tasks, all_finite
from metatransfer.functional.meta.inputs import as_precise, concatenated, sample_axes
from metatransfer.functional.meta.stateless import BatchNormPolicy, Forward, batch_norm_layers, stateless
from metatransfer.functional.meta.update_rules import Params, PlainRule, RuleState, UpdateRule, sgd
from metatransfer.methods.episodic import EpisodicModule
from metatransfer.methods.gradient import outer_loop
from metatransfer.methods.options import Execution, InnerLoop


class AdaptedTasks(NamedTuple):
    """State of ``T`` tasks after some inner steps.

    Attributes:
        params: adapted parameters ``(T, *shape)`` by name.
        support_x: ``(T, S, *shape)``; with ``batch_norm="support"`` its statistics normalise the queries.
        steps: number of steps taken.
        memory: state of the update rule after the last step.
    """

    params: Params
    support_x: Inputs
    steps: int
    memory: RuleState = ()


class InnerLoopModule(outer_loop.ReachesAllParameters, EpisodicModule[AdaptedTasks]):
    r"""Learns a task by gradient steps on its support set; the outer loop learns where these steps start.

    .. math:: \theta_i^{(t+1)} = U\bigl(\theta_i^{(t)}, \nabla \mathcal L_{S_i}(\theta_i^{(t)})\bigr), \qquad
              \min \frac1T\sum_i \mathcal L_{Q_i}(\theta_i^{(K)})

    Subclasses override which parameters adapt (:meth:`adapted_parameters`, :meth:`task_parameters`), the update rule
    :math:`U` (:meth:`update_rule`), its order (:meth:`takes_constants`), parameters that differ between steps
    (:meth:`parameters_at`), the inner loss (:meth:`inner_loss`) and the outer loss (:meth:`outer_loss`). The other
    arguments and the errors are those of :class:`MAMLModule`.

    Args:
        network: the modules ``backbone`` and ``head`` by name.
    """

    cannot_export = (
        "its inner loop takes gradients of the support loss, which torch.export cannot trace: adapt it, and export the "
        "predictor"
    )

    @abstractmethod  # subclasses have their own arguments
    def __init__(
        self,
        network: dict[str, nn.Module],
        inner: InnerLoop,
        batch_norm: BatchNormPolicy,
        execution: Execution,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if execution.compile and inner.checkpoint:
            raise UserError(
                "execution.compile and inner.checkpoint cannot be combined, as the compiler decides what is "
                "recomputed: choose one."
            )
        check_choice("batch_norm", batch_norm, ("transductive", "support", "running"))
        self.inner, self.execution, self.batch_norm = inner, execution, batch_norm
        self.compiled: CompiledLoss | None = None
        sequence = nn.Sequential(OrderedDict(network))
        for name, module in network.items():
            self.add_module(name, module)
        # in a list, so that the state_dict names each parameter once
        self._network = [sequence]
        self.transductive = batch_norm == "transductive" and bool(batch_norm_layers(sequence))
        stateless(sequence, running=batch_norm == "running")  # raises errors now instead of in training

    # ---- hooks of subclasses

    @property
    def network(self) -> nn.Module:
        """Backbone and head as one network."""
        return self._network[0]

    def adapted_parameters(self) -> Params:
        """The parameters that adapt, by their names in :attr:`network`: all that are not frozen.

        If all are frozen, as by ``LightningModule.freeze`` for inference, all of them adapt.
        """
        every: Params = dict(self.network.named_parameters())
        return {name: value for name, value in every.items() if value.requires_grad} or every

    def update_rule(self) -> UpdateRule | PlainRule:
        """The update rule of an inner step."""
        return sgd(self.inner.lr_in(self.training))

    def task_parameters(self, support_x: Inputs, support_y: Tensor) -> Params:
        """Parameters ``(T, *shape)`` that adapt from a different start in every task; by default none."""
        return {}

    def parameters_at(self, step: int) -> Params:
        """Parameters that do not adapt but differ between steps, from 0; queries use those of the last step."""
        return {}

    def takes_constants(self) -> bool:
        """Whether inner gradients are currently treated as constants (first order)."""
        return self.inner.first_order

    def inner_loss(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ANN401
        """The inner loss, a scalar: by default cross-entropy for labels, squared error for floats.

        Args:
            outputs: outputs of the network for the support set of one task, in any nesting.
            targets: ``(S,)`` or ``(S, D)``.
        """
        return episode_loss(outputs, targets)

    def learns_from_all_steps(self) -> bool:
        """Whether the outer loss currently uses the tasks after every inner step instead of only the last."""
        return False

    def outer_loss(self, states: list[AdaptedTasks], episode: Episode) -> tuple[Tensor, Any]:
        """The outer loss, a mean over tasks, and the outputs for the queries: by default those after the last step.

        Args:
            states: the tasks after the last inner step; before and after each step if :meth:`learns_from_all_steps`.
            episode: the tasks.
        """
        outputs = mask_absent_classes(self.predict_tasks(states[-1], episode.query_x), episode.support_y)
        return self.loss(outputs, episode.query_y), outputs

    def compile_key(self) -> Hashable:
        """Everything that may change a training step; with ``execution.compile`` each key is traced once."""
        return self.training, self.takes_constants(), self.learns_from_all_steps()

    def fit_tasks(self, support_x: Inputs, support_y: Tensor) -> AdaptedTasks:
        """Runs the inner loop of every task."""
        outer_loop.collect_statistics(self, support_x)
        return self.adapt_through(support_x, support_y)[-1]

    def adapt_through(
        self, support_x: Inputs, support_y: Tensor, trajectory: bool = False, rows: Tensor | None = None
    ) -> list[AdaptedTasks]:
        """Runs the inner loop of every task.

        Args:
            support_x: ``(T, S, *shape)``.
            support_y: ``(T, S)`` or ``(T, S, D)``.
            trajectory: return the tasks before and after each step instead of only after the last.
            rows: ``(T, steps, B)`` indices of the samples of each step; all if ``None``.
        """
        steps = self.inner.steps_in(self.training)
        found, memory = adapt_tasks(
            self._forward(support_x), self.adapted_parameters(), support_x, support_y,
            steps=steps, update=self.update_rule(), task_params=self.task_parameters(support_x, support_y),
            first_order=self.takes_constants(), loss=self.inner_loss, clip=self.inner.max_norm,
            fixed_at=self.parameters_at, rows=rows, checkpoint=self.inner.checkpoint, trajectory=trajectory,
            batching=self.execution.batching_for(self.network, support_x), chunk_size=self.execution.chunk_size,
        )  # fmt: skip
        first = steps + 1 - len(found)
        tasks = [AdaptedTasks(params, support_x, first + index) for index, params in enumerate(found)]
        return [*tasks[:-1], tasks[-1]._replace(memory=memory)]

    def predict_tasks(self, state: AdaptedTasks, query_x: Inputs) -> Any:  # noqa: ANN401
        """Outputs of the adapted networks."""
        forward, fixed = self._forward(query_x), self.parameters_at(max(state.steps - 1, 0))
        query_x = as_precise(query_x, state.params)  # as the inner loop does with the support set
        shots = sample_axes(state.support_x, 2)[1] if self.batch_norm == "support" else None

        def predict(params: Params, support_x: Inputs, x: Inputs) -> Any:  # noqa: ANN401
            if shots is None:
                return forward({**fixed, **params}, x)
            outputs = forward({**fixed, **params}, concatenated(support_x, x, 0), shots)
            return pytree.tree_map(lambda part: part[shots:], outputs)

        return over_tasks(
            predict, state.params, state.support_x, query_x,
            batching=self.execution.batching_for(self.network, query_x), chunk_size=self.execution.chunk_size,
        )  # fmt: skip

    def training_loss(self, episode: Episode) -> tuple[Tensor, Any]:
        """The outer loss, differentiated task by task (or chunk by chunk) to save memory; checks for divergence."""
        outer_loop.collect_statistics(self, episode.support_x)
        trainable: Params = {name: value for name, value in self.named_parameters() if value.requires_grad}
        compiled = self.execution.compile
        finite: list[Tensor] = []

        def part_loss(part: Episode) -> tuple[Tensor, Any]:
            found = outer_loop.compiled_part_loss(self, part, trainable) if compiled else self.part_loss(part)
            loss, outputs, fine = found
            finite.append(fine)
            return loss, outputs

        batching = self.execution.batching_for(self.network, episode.support_x)
        loss, outputs = mean_over_parts(
            part_loss, episode, chunk_size=self.execution.chunk_size if batching == "vmap" else 1,
            leaves=list(trainable.values()), threads=batching == "threads" and not compiled,
        )  # fmt: skip
        if not torch.stack(finite).all():  # the only synchronisation with the device
            with torch.no_grad():  # again, to find out where
                trajectory = self.adapt_through(episode.support_x, episode.support_y, trajectory=True)
            outer_loop.report_divergence([tasks.params for tasks in trajectory], self.inner.lr_in(self.training))
        return loss, outputs

    def part_loss(self, part: Episode) -> tuple[Tensor, Any, Tensor]:
        """Outer loss and outputs of some tasks, and whether all values are finite."""
        states = self.adapt_through(part.support_x, part.support_y, self.learns_from_all_steps())
        loss, outputs = self.outer_loss(states, part)
        return loss, outputs, all_finite(states[-1].params) & torch.isfinite(loss)

    def adaptation_curve(self, episode: Episode) -> Tensor:
        """The query score before adaptation and after each inner step, ``(steps + 1, T)``."""
        return torch.stack([self.score(outputs, episode.query_y) for outputs in self.adaptation_outputs(episode)])

    def adaptation_outputs(self, episode: Episode) -> list[Any]:
        """The outputs for the queries before adaptation and after each inner step."""
        states = self.adapt_through(episode.support_x, episode.support_y, trajectory=True)
        return [self.predict_tasks(state, episode.query_x) for state in states]

    def _forward(self, x: Inputs) -> Forward:
        return stateless(self.network, running=self.batch_norm == "running" and not self.training)

    def protocol(self) -> dict[str, Any]:
        """Adds steps, rates, order and BatchNorm policy."""
        return super().protocol() | {
            "inner_steps": self.inner.steps,
            "inner_lr": self.inner.lr,
            "train_inner_steps": self.inner.steps_in(True),
            "train_inner_lr": self.inner.lr_in(True),
            "first_order": self.inner.first_order,
            "max_inner_norm": self.inner.max_norm,
            "batch_norm": self.batch_norm if batch_norm_layers(self.network) else "none",
        }
