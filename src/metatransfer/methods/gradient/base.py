"""What all gradient-based methods share: an inner loop over the tasks of a meta-batch, and an outer loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call

from metatransfer.batches import Episode
from metatransfer.checks import check_choice, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss, episode_scores, mask_absent_classes
from metatransfer.functional.meta.batching import (
    Batching,
    check_batching,
    choose_batching,
    known_gradients,
    mean_over_parts,
    over_tasks,
)
from metatransfer.functional.meta.compiled import CompiledLoss
from metatransfer.functional.meta.inner_loop import adapt_tasks, all_finite, first_divergence
from metatransfer.functional.meta.stateless import BatchNormPolicy, Forward, batch_norm_layers, stateless
from metatransfer.functional.meta.update_rules import Params, PlainRule, State, UpdateRule, sgd
from metatransfer.methods.episodic import EpisodicModule


class AdaptedTasks(NamedTuple):
    """What is left of ``T`` tasks after some steps of the inner loop.

    Attributes:
        params: adapted parameters by name, each ``(T, *shape)``.
        support_x: ``(T, S, *shape)``; under ``batch_norm="support"`` the queries are normalised by its statistics.
        steps: how many steps were taken.
        memory: what the update rule remembers after the last step.
    """

    params: Params
    support_x: Tensor
    steps: int
    memory: State = ()


class InnerLoopModule(EpisodicModule[AdaptedTasks]):
    r"""Learns a task by gradient steps on its support set; the outer loop learns what these steps start from.

    .. math:: \theta_i^{(t+1)} = U\bigl(\theta_i^{(t)}, \nabla \mathcal L_{S_i}(\theta_i^{(t)})\bigr), \qquad
              \min \frac1T\sum_i \mathcal L_{Q_i}(\theta_i^{(K)})

    A member of the family says which parameters adapt (:meth:`adapted_parameters`, :meth:`task_parameters`), by which
    rule :math:`U` (:meth:`update_rule`), of which order (:meth:`takes_constants`), what else a step has of its own
    (:meth:`parameters_at`), and what the outer loop minimises (:meth:`outer_loss`).

    Args:
        network: backbone and head in one, under the names ``backbone`` and ``head``.
        inner_steps: gradient steps on a support set, in training and evaluation.
        inner_lr: their rate.
        train_inner_steps: steps in training, where they differ from ``inner_steps``.
        train_inner_lr: rate in training, where it differs from ``inner_lr``.
        first_order: take the inner gradients as constants.
        batch_norm: whose statistics BatchNorm uses.
        batching: how the tasks of a meta-batch are worked off.
        chunk_size: with vmap, tasks at a time.
        checkpoint: recompute the inner steps in the backward pass instead of keeping them.
        compile: trace and compile the training step.
        max_inner_norm: largest norm of the gradients of a task in an inner step.
        optimizer: makes the outer optimiser.
        lr_scheduler: makes its scheduler.

    Raises:
        UserError: an argument out of its range.
    """

    @abstractmethod  # the members take arguments of their own, and no class is built that has none
    def __init__(
        self,
        network: dict[str, nn.Module],
        inner_steps: int,
        inner_lr: float,
        train_inner_steps: int | None,
        train_inner_lr: float | None,
        first_order: bool,
        batch_norm: BatchNormPolicy,
        batching: Literal["auto"] | Batching,
        chunk_size: int | None,
        checkpoint: bool,
        compile: bool,
        max_inner_norm: float | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_positive(inner_lr=inner_lr, train_inner_lr=train_inner_lr, chunk_size=chunk_size)
        check_positive(max_inner_norm=max_inner_norm)
        if inner_steps < 0 or (train_inner_steps or 0) < 0:
            raise UserError(
                f"inner_steps must be 0 or more, but are {inner_steps} and {train_inner_steps} in training."
            )
        if compile and checkpoint:
            raise UserError(
                "compile and checkpoint do not go together: a compiled step keeps what it likes; choose one."
            )
        check_choice("batch_norm", batch_norm, ("transductive", "support", "running"))
        check_choice("batching", batching, ("auto", "loop", "threads", "vmap"))
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.train_inner_steps = inner_steps if train_inner_steps is None else train_inner_steps
        self.train_inner_lr = inner_lr if train_inner_lr is None else train_inner_lr
        self.first_order = first_order
        self.batch_norm = batch_norm
        self.batching, self.chunk_size = batching, chunk_size
        self.checkpoint, self.max_inner_norm = checkpoint, max_inner_norm
        self.compile_step = compile  # torch's modules have a method compile
        self._compiled: dict[tuple[str, ...], CompiledLoss] = {}
        self._reached = False
        sequence = nn.Sequential()
        for name, module in network.items():
            self.add_module(name, module)
            sequence.add_module(name, module)
        # in a list, so that the state_dict names each parameter once
        self._network = [sequence]
        self.transductive = batch_norm == "transductive" and bool(batch_norm_layers(sequence))
        check_batching(sequence, batching)
        stateless(sequence, running=batch_norm == "running")  # refuses what the policy cannot do, now

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

    def update_rule(self) -> UpdateRule | PlainRule:
        """What an inner step does with its gradients."""
        return sgd(self.train_inner_lr if self.training else self.inner_lr)

    def task_parameters(self, support_x: Tensor, support_y: Tensor) -> Params:
        """What adapts and starts differently in every task, each ``(T, *shape)``; by default nothing.

        Args:
            support_x: ``(T, S, *shape)``.
            support_y: ``(T, S)`` or ``(T, S, D)``.
        """
        return {}

    def parameters_at(self, step: int) -> Params:
        """What does not adapt but differs from step to step; by default nothing.

        Args:
            step: which inner step, from 0; queries are answered with what the step before them had.
        """
        return {}

    def takes_constants(self) -> bool:
        """Whether inner gradients count as constants now (first order)."""
        return self.first_order

    # ---- the method

    def fit_tasks(self, support_x: Tensor, support_y: Tensor) -> AdaptedTasks:
        """Runs the inner loop of every task."""
        return self.adapt_through(support_x, support_y)[-1]

    def adapt_through(self, support_x: Tensor, support_y: Tensor, trajectory: bool = False) -> list[AdaptedTasks]:
        """Runs the inner loop of every task.

        Args:
            support_x: ``(T, S, *shape)``.
            support_y: ``(T, S)`` or ``(T, S, D)``.
            trajectory: return the tasks before and after each step, instead of after the last alone.

        Returns:
            The adapted tasks, the last of them last.
        """
        self._collect_statistics(support_x)
        return self._run(support_x, support_y, trajectory)

    def _run(
        self, support_x: Tensor, support_y: Tensor, trajectory: bool, rows: Tensor | None = None
    ) -> list[AdaptedTasks]:
        steps = self.train_inner_steps if self.training else self.inner_steps
        found, memory = adapt_tasks(
            self._forward(support_x), self.adapted_parameters(), support_x, support_y,
            steps=steps, update=self.update_rule(), task_params=self.task_parameters(support_x, support_y),
            first_order=self.takes_constants(), clip=self.max_inner_norm, fixed_at=self.parameters_at, rows=rows,
            checkpoint=self.checkpoint, trajectory=trajectory,
            batching=self._batching(support_x), chunk_size=self.chunk_size,
        )  # fmt: skip
        first = steps + 1 - len(found)
        tasks = [AdaptedTasks(params, support_x, first + index) for index, params in enumerate(found)]
        return [*tasks[:-1], tasks[-1]._replace(memory=memory)]

    def predict_tasks(self, state: AdaptedTasks, query_x: Tensor) -> Tensor:
        """Outputs of the adapted networks."""
        forward, fixed = self._forward(query_x), self.parameters_at(max(state.steps - 1, 0))
        if query_x.is_floating_point():  # as the inner loop takes the support set
            query_x = query_x.to(next(iter(state.params.values())).dtype)
        by_support = self.batch_norm == "support"

        def predict(params: Params, support_x: Tensor, x: Tensor) -> Tensor:
            if not by_support:
                return forward({**fixed, **params}, x)
            shots = len(support_x)
            return forward({**fixed, **params}, torch.cat([support_x, x]), shots)[shots:]

        return over_tasks(
            predict, state.params, state.support_x, query_x,
            batching=self._batching(query_x), chunk_size=self.chunk_size,
        )  # fmt: skip

    def learns_from_all_steps(self) -> bool:
        """Whether the outer loss looks at the tasks after each inner step now, not after the last alone."""
        return False

    def outer_loss(self, states: list[AdaptedTasks], episode: Episode) -> tuple[Tensor, Tensor]:
        """What the outer loop minimises, a mean over tasks: by default the query loss after the last step.

        Args:
            states: the tasks after the last inner step; where :meth:`learns_from_all_steps`, before and after each.
            episode: the tasks.

        Returns:
            The loss, and the outputs for the queries.
        """
        outputs = mask_absent_classes(self.predict_tasks(states[-1], episode.query_x), episode.support_y)
        return episode_loss(outputs, episode.query_y), outputs

    def training_loss(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The outer loss; refuses tasks whose inner loop diverged, before the weights learn from them.

        Tasks that are worked off one after the other (or chunk by chunk) are differentiated one after the other too,
        so that memory holds the graph of one at a time.
        """
        self._collect_statistics(episode.support_x)
        finite: list[Tensor] = []
        given: dict[str, Any] = {name: part for name, part in episode._asdict().items() if part is not None}

        def part_loss(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            loss, outputs, fine = self._part_loss(Episode(**dict(zip(given, tensors, strict=True))))
            finite.append(fine)
            return loss, outputs

        def compiled_part_loss(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            (loss, outputs, fine), gradients = self._compiled_part_loss(tuple(given), trainable, *tensors)
            finite.append(fine)
            return known_gradients(loss, gradients, list(trainable.values())), outputs

        trainable: Params = {name: value for name, value in self.named_parameters() if value.requires_grad}
        batching = self._batching(episode.support_x)
        loss, outputs = mean_over_parts(
            compiled_part_loss if self.compile_step else part_loss,
            *given.values(),
            chunk_size=self.chunk_size if batching == "vmap" else 1,
            leaves=list(trainable.values()),
            threads=batching == "threads" and not self.compile_step,
        )
        if not torch.stack(finite).all():  # the only time that anything waits for the device
            self._report_divergence(episode.support_x, episode.support_y)
        return loss, outputs

    def compile_key(self) -> Hashable:
        """All numbers and choices of a training step that may change while it is trained: another key, another trace.

        With ``compile``, what Python computes in the hooks of this class is computed once for each key.
        """
        return self.training, self.takes_constants(), self.learns_from_all_steps()

    def _compiled_part_loss(
        self, names: tuple[str, ...], trainable: Params, *tensors: Tensor
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        if names not in self._compiled:
            self._compiled[names] = CompiledLoss(partial(self._part_loss_of, names))
        autocast = torch.is_autocast_enabled(self.device.type), torch.get_autocast_dtype(self.device.type)
        return self._compiled[names](trainable, *tensors, key=(self.compile_key(), autocast))

    def _part_loss_of(self, names: tuple[str, ...], params: Params, *tensors: Tensor) -> tuple[Tensor, ...]:
        part = Episode(**dict(zip(names, tensors, strict=True)))  # type: ignore[arg-type]
        whole = _PartLoss(self)
        found: tuple[Tensor, ...] = functional_call(
            whole, {f"module.{name}": value for name, value in params.items()}, (part,)
        )
        return found

    def _part_loss(self, part: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """Outer loss and outputs of some tasks, and whether their inner loops stayed finite."""
        states = self._run(part.support_x, part.support_y, self.learns_from_all_steps())
        loss, outputs = self.outer_loss(states, part)
        return loss, outputs, all_finite(states[-1].params) & torch.isfinite(loss)

    def _report_divergence(self, support_x: Tensor, support_y: Tensor, rows: Tensor | None = None) -> None:
        with torch.no_grad():  # once more, to find out where
            trajectory = self._run(support_x, support_y, True, rows)
        steps = trajectory[-1].steps
        found = first_divergence([tasks.params for tasks in trajectory])
        if found is None:
            raise UserError(
                "the outer loss is NaN or infinite though every inner loop stayed finite: look for NaN among the "
                "queries, lower inner_lr, or set max_inner_norm. The weights were not updated."
            )
        step, task, name = found
        rate = self.train_inner_lr if self.training else self.inner_lr
        if step < 0:
            raise UserError(
                f"parameter {name} holds NaN or infinity before the first inner step: the weights are spoiled."
            )
        raise UserError(
            f"the inner loop diverged: parameter {name} is NaN or infinite after inner step {step + 1} of "
            f"{steps} in task {task} of the meta-batch, at inner_lr={rate:g}; lower inner_lr, take fewer steps, "
            "set max_inner_norm, or look at that task's samples. The weights were not updated."
        )

    def on_train_start(self) -> None:
        """Makes ready to look at the first gradients."""
        super().on_train_start()
        self._reached = False

    def on_after_backward(self) -> None:
        """Refuses, at the first gradients, parameters that no task reaches: they would stay as they are unnoticed.

        Raises:
            UserError: a parameter without a gradient.
        """
        if self._reached:
            return
        self._reached = True
        lost = [name for name, value in self.named_parameters() if value.requires_grad and value.grad is None]
        if lost:
            raise UserError(
                f"no task of the first meta-batch reaches {', '.join(lost[:3])}{', …' * (len(lost) > 3)}: the loss "
                "does not depend on it, so that it would never be trained; use it in the network, or freeze it "
                "(requires_grad_(False))."
            )

    def adaptation_curve(self, episode: Episode) -> Tensor:
        """The query score before adaptation and after each inner step.

        Args:
            episode: ``T`` tasks.

        Returns:
            ``(inner_steps + 1, T)``, or as many as there are steps in training.
        """
        return torch.stack([episode_scores(outputs, episode.query_y) for outputs in self.adaptation_outputs(episode)])

    def adaptation_outputs(self, episode: Episode) -> list[Tensor]:
        """The answers before adaptation and after each inner step.

        Args:
            episode: ``T`` tasks.

        Returns:
            Each ``(T, Q, C)`` or ``(T, Q, D)``.
        """
        states = self.adapt_through(episode.support_x, episode.support_y, trajectory=True)
        return [self.predict_tasks(state, episode.query_x) for state in states]

    def _forward(self, x: Tensor) -> Forward:
        running = self.batch_norm == "running" and not self.training
        return stateless(self.network, running=running)

    def _batching(self, x: Tensor) -> Batching:
        return choose_batching(self.network, x) if self.batching == "auto" else self.batching

    @torch.no_grad()
    def _collect_statistics(self, support_x: Tensor) -> None:
        if self.batch_norm != "running" or not self.training:
            return
        # one plain pass over all support sets; inside the inner loop no buffer may change
        samples = support_x.flatten(0, 1)
        try:
            functional_call(self.network, self.parameters_at(0), (samples,))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"batch_norm='running' collects statistics of all support samples of a meta-batch, and {len(samples)} "
                "is too few for it: serve more tasks or shots, or choose another norm."
            ) from error

    def protocol(self) -> dict[str, Any]:
        """As of the base, with steps, rates, order and BatchNorm policy."""
        return super().protocol() | {
            "inner_steps": self.inner_steps,
            "inner_lr": self.inner_lr,
            "train_inner_steps": self.train_inner_steps,
            "train_inner_lr": self.train_inner_lr,
            "first_order": self.first_order,
            "max_inner_norm": self.max_inner_norm,
            "batch_norm": self.batch_norm if batch_norm_layers(self.network) else "none",
        }


class _PartLoss(nn.Module):
    """Lets ``functional_call`` give a whole method other parameters."""

    def __init__(self, module: InnerLoopModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, part: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """The part loss under the parameters of the call."""
        return self.module._part_loss(part)
