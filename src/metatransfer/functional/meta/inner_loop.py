"""The inner loop of gradient-based meta-learning: adapts parameters to one task or to many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint as recompute

from metatransfer.batches import Inputs
from metatransfer.errors import UserError
from metatransfer.functional.losses import episode_loss
from metatransfer.functional.meta.batching import Batching, by_shares, joined, mapped, unmappable, unstacked
from metatransfer.functional.meta.inputs import as_precise
from metatransfer.functional.meta.threads import MATH_ATTENTION
from metatransfer.functional.meta.update_rules import Params, PlainRule, RuleState, UpdateRule, as_rule, clip_norm

Loss = Callable[[Any, Tensor], Tensor]
"""``loss(outputs, targets)`` of one task, a scalar; the network may return outputs in any nesting."""
Network = Callable[[Params, Any], Any]
FixedAt = Callable[[int], Params]
"""``fixed_at(step)``: parameters that do not adapt but differ from step to step; steps count from 0."""


def inner_loop(
    forward: Network,
    params: Params,
    support_x: Inputs,
    support_y: Tensor,
    *,
    steps: int,
    update: UpdateRule | PlainRule,
    first_order: bool = False,
    loss: Loss = episode_loss,
    clip: float | None = None,
    fixed_at: FixedAt | None = None,
) -> Params:
    r"""Adapts ``params`` to one task.

    .. math:: \theta_{t+1} = U(\theta_t, \nabla_{\theta_t}\mathcal L(f_{\theta_t}(x), y))

    Finn et al. 2017 (1703.03400), Eq. 1. The result is differentiable with respect to ``params`` and everything that
    ``update`` depends on. The arguments are those of :func:`adapt_tasks`, without the task axis.

    Returns:
        The adapted parameters, under the same names.
    """
    x, y = pytree.tree_map(lambda part: part.unsqueeze(0), (support_x, support_y))
    [adapted], _ = adapt_tasks(
        forward, params, x, y, steps=steps, update=update, first_order=first_order, loss=loss, clip=clip,
        fixed_at=fixed_at,
    )  # fmt: skip
    return {name: value.squeeze(0) for name, value in adapted.items()}


@dataclass(frozen=True)
class _Step:
    """One inner step of a task, or of a stack of tasks, by plain autograd.

    Each task's parameters affect only its own loss, so the gradient of the summed losses gives every task's gradient:
    only the forward pass and the update are mapped, and one backward pass serves all tasks.
    """

    forward: Network
    loss: Loss
    rule: UpdateRule
    clip: float | None
    fixed_at: FixedAt | None
    second_order: bool
    stacked: bool

    def _mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return mapped(function) if self.stacked else function

    def start(self, params: Params) -> RuleState:
        return self._mapped(self.rule.start)(params)

    def __call__(self, params: Params, state: RuleState, x: Inputs, y: Tensor, step: int) -> tuple[Params, RuleState]:
        if self.second_order:
            params = {
                name: value if value.requires_grad else value.detach().requires_grad_()
                for name, value in params.items()
            }
            point = params
        else:  # detached, so that no outer graph is built through the adapted parameters
            point = {name: value.detach().requires_grad_() for name, value in params.items()}
        gradients, losses = self._gradients(point, x, y, step)

        def update(params: Params, gradients: Params, state: RuleState, loss: Tensor) -> tuple[Params, RuleState]:
            if self.clip is not None:
                gradients = clip_norm(gradients, self.clip)
            seen = (loss,) if self.rule.reads_loss else ()
            return self.rule.update(params, gradients, state, step, *seen)

        moved: tuple[Params, RuleState] = self._mapped(update)(params, gradients, state, losses)
        return moved

    def _gradients(self, point: Params, x: Inputs, y: Tensor, step: int) -> tuple[Params, Tensor]:
        """The gradients, and the loss of each task."""
        fixed = {} if self.fixed_at is None else self.fixed_at(step)

        def support_loss(current: Params, x: Inputs, y: Tensor) -> Tensor:
            return self.loss(self.forward({**fixed, **current}, x), y)

        with torch.enable_grad(), torch.autocast(y.device.type, enabled=False), MATH_ATTENTION:
            losses = self._mapped(support_loss)(point, x, y)
            total = losses.sum()
            if not total.requires_grad:
                raise UserError(
                    f"none of the adapted parameters ({', '.join(list(point)[:3])}{', …' * (len(point) > 3)}) affects "
                    "the support loss: check which parameters adapt, and that the network uses them."
                )
            try:
                found = torch.autograd.grad(
                    total, list(point.values()), create_graph=self.second_order, materialize_grads=True
                )
            except RuntimeError as error:
                if self.stacked and "vmap" in str(error):  # recomputing outside of vmap
                    raise unmappable(error) from error
                if "use_reentrant" not in str(error):
                    raise
                raise UserError(
                    "the network calls torch.utils.checkpoint with use_reentrant=True, which has no gradient in an "
                    "inner loop: use use_reentrant=False."
                ) from error
        return dict(zip(point, found, strict=True)), losses if self.second_order else losses.detach()


class InnerLoopResult(NamedTuple):
    """Result of the inner loop of ``T`` tasks.

    Attributes:
        steps: the parameters ``(T, *shape)`` after the last step as a list of one, or before and after each step.
        state: the state of the update rule after the last step, tensors ``(T, *shape)``.
    """

    steps: list[Params]
    state: RuleState


def adapt_tasks(
    forward: Network,
    params: Params,
    support_x: Inputs,
    support_y: Tensor,
    *,
    steps: int,
    update: UpdateRule | PlainRule,
    task_params: Params | None = None,
    first_order: bool = False,
    loss: Loss = episode_loss,
    clip: float | None = None,
    fixed_at: FixedAt | None = None,
    rows: Tensor | None = None,
    checkpoint: bool = False,
    trajectory: bool = False,
    batching: Batching = "loop",
    chunk_size: int | None = None,
) -> InnerLoopResult:
    r"""Adapts ``params`` to each of ``T`` tasks; the formula is that of :func:`inner_loop`.

    Works inside ``torch.no_grad`` and ``torch.inference_mode``, where it builds no outer graph. Autocast is disabled,
    so that inner gradients have the precision of the parameters.

    Args:
        forward: ``forward(params, x)``, a pure function, see :func:`stateless`.
        params: the parameters that adapt, with the same start for every task.
        support_x: ``(T, S, *shape)``, or tokens.
        support_y: ``(T, S)`` or ``(T, S, D)``.
        steps: number of updates; 0 returns the parameters unchanged.
        update: the update rule of one task, e.g. ``sgd(0.4)``.
        task_params: parameters ``(T, *shape)`` that adapt from a different start in every task, by name.
        first_order: treat the inner gradients as constants (FOMAML): gradients are detached, parameters are not.
        loss: ``loss(outputs, targets)`` of one task, a scalar.
        clip: largest norm of the gradients of a task in a step.
        fixed_at: further parameters for ``forward`` at each step (per-step BatchNorm).
        rows: ``(T, steps, B)`` indices of the support samples of each step; all if ``None``.
        checkpoint: store only the parameters of each step and recompute the rest in the backward pass. This saves
            memory and costs one more forward and backward pass per step.
        trajectory: return the parameters before and after every step, ``steps + 1`` in all, instead of only the last.
        batching: see :func:`over_tasks`.
        chunk_size: number of tasks at a time with ``"vmap"``.

    Returns:
        The adapted parameters and the last state of the update rule.

    Raises:
        UserError: there is nothing to adapt, or none of it affects the loss.
    """
    own = task_params or {}
    if not {**params, **own}:
        raise UserError(
            "the inner loop has no parameter to adapt: check which parameters are selected and which are frozen."
        )
    differentiable = torch.is_grad_enabled()  # leaving inference mode enables gradients
    second_order = differentiable and not first_order
    step_of = _Step(forward, loss, as_rule(update), clip, fixed_at, second_order, stacked=batching == "vmap")

    def adapt(batch: _Tasks) -> InnerLoopResult:
        start = params
        if step_of.stacked:
            start = {name: value.expand(len(batch.y), *value.shape) for name, value in params.items()}
        elif batch.own:
            # the start of a task may depend on params, but an inner step changes each on its own
            start = {name: value.view_as(value) for name, value in params.items()}
        current = {**start, **batch.own}
        state = step_of.start(current)
        seen = [current]
        for step in range(steps):
            arguments = (current, state, *batch.at(step, step_of.stacked), step)
            if checkpoint and second_order:
                current, state = recompute(step_of, *arguments, use_reentrant=False)
            else:
                current, state = step_of(*arguments)
            seen = [*seen, current] if trajectory else [current]
        return InnerLoopResult(seen, state)

    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        params, own, support_x, support_y = pytree.tree_map(_ordinary, (params, own, support_x, support_y))
        if not differentiable:  # a view of a parameter still requires a gradient
            params, own = pytree.tree_map(torch.detach, (params, own))
        support_x = as_precise(support_x, {**params, **own})
        tasks = _Tasks(support_x, support_y, own, {} if rows is None else {"rows": rows})
        size = (chunk_size or len(support_y)) if step_of.stacked else None
        parts = by_shares(lambda share: [adapt(part) for part in share], unstacked(tasks, size), batching)
        if len(parts) == 1 and step_of.stacked:
            return parts[0]
        return joined(parts, torch.cat if step_of.stacked else torch.stack)


def _ordinary(tensor: Tensor) -> Tensor:
    # tensors made in inference mode cannot take part in a gradient
    return tensor.clone() if tensor.is_inference() else tensor


class _Tasks(NamedTuple):
    """One task or a stack of them."""

    x: Inputs
    y: Tensor
    own: Params
    rows: Params

    def at(self, step: int, stacked: bool) -> tuple[Inputs, Tensor]:
        """The support samples of a step."""
        if not self.rows:
            return self.x, self.y
        rows = self.rows["rows"][:, step] if stacked else self.rows["rows"][step]
        chosen = (torch.arange(len(rows), device=rows.device).unsqueeze(1), rows) if stacked else rows
        found: tuple[Inputs, Tensor] = pytree.tree_map(lambda part: part[chosen], (self.x, self.y))
        return found


def all_finite(params: Params) -> Tensor:
    """Whether no parameter is NaN or infinite, as a boolean tensor on the device (no synchronisation)."""
    if not params:
        return torch.tensor(True)
    # the largest magnitude is NaN or infinite as soon as one number is
    return torch.isfinite(torch.nn.utils.get_total_norm(list(params.values()), norm_type=torch.inf))


def first_divergence(trajectory: list[Params]) -> tuple[int, int, str] | None:
    """Finds the first inner step and task with a parameter that is not finite.

    Args:
        trajectory: parameters ``(T, *shape)`` before and after each step.

    Returns:
        Step (-1 for the initial parameters), task and name of the parameter; ``None`` if all are finite.
    """
    for step, params in enumerate(trajectory):
        for name, value in params.items():
            wrong = ~torch.isfinite(value).flatten(1).all(1)
            if wrong.any():
                return step - 1, int(wrong.int().argmax()), name
    return None
