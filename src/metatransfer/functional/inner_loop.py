"""The inner loop of gradient-based meta-learning: one function adapts a dictionary of parameters to one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from metatransfer.functional.losses import episode_loss

Params = dict[str, Tensor]
UpdateRule = Callable[[Params, Params, int], Params]
"""``rule(params, gradients, step) -> params``: a differentiable function; the step counts from 0."""

Batching = Literal["loop", "vmap"]
Result = TypeVar("Result")


def sgd(lr: float | Mapping[str, Tensor]) -> UpdateRule:
    r"""Plain gradient descent :math:`\theta \leftarrow \theta - \alpha \nabla\mathcal L(\theta)`.

    Args:
        lr: the rate :math:`\alpha`, or a tensor of rates for each parameter name.
    """

    def update(params: Params, gradients: Params, step: int) -> Params:
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(params, lr)
        return {name: value - rates[name] * gradients[name] for name, value in params.items()}

    return update


def inner_loop(
    forward: Callable[[Params, Tensor], Tensor],
    params: Params,
    support_x: Tensor,
    support_y: Tensor,
    *,
    steps: int,
    update: UpdateRule,
    first_order: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] = episode_loss,
) -> Params:
    r"""Adapts ``params`` to one task.

    .. math:: \theta_{t+1} = U(\theta_t, \nabla_{\theta_t}\mathcal L(f_{\theta_t}(x), y))

    Finn et al. 2017 (1703.03400), Eq. 1. What the dictionary holds is what adapts; everything else is fixed inside
    ``forward``. The result stays differentiable with respect to ``params`` and whatever ``update`` depends on. Works
    inside ``torch.inference_mode`` and under ``torch.func.vmap``; autocast is switched off, so that inner gradients are
    as precise as the parameters are.

    Args:
        forward: ``forward(params, x)``, a pure function (see :func:`metatransfer.functional.stateless`).
        params: what adapts.
        support_x: ``(S, *shape)``.
        support_y: ``(S,)`` or ``(S, D)``.
        steps: number of updates; 0 returns the parameters as they are.
        update: the update rule, e.g. ``sgd(0.4)``.
        first_order: treat the inner gradients as constants (FOMAML): gradients are detached, parameters are not.
        loss: ``loss(outputs, targets)``, a scalar.

    Returns:
        The adapted parameters, under the same names.
    """
    if support_x.is_floating_point() and params:
        support_x = support_x.to(next(iter(params.values())).dtype)

    def support_loss(current: Params) -> Tensor:
        return loss(forward(current, support_x), support_y)

    for step in range(steps):
        # at detached parameters, so that no outer graph is built through what adapts
        point = {name: value.detach() for name, value in params.items()} if first_order else params
        # around grad, not inside the loss: the backward pass obeys autocast too
        # and the fused attention kernels have no second derivative
        with torch.autocast(support_x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            gradients = grad(support_loss)(point)
        if first_order:  # parameters that do not adapt, or inputs, may require gradients too
            gradients = {name: value.detach() for name, value in gradients.items()}
        params = update(params, gradients, step)
    return params


def over_tasks(
    function: Callable[..., Result],
    *batched: Any,  # noqa: ANN401
    batching: Batching = "loop",
    chunk_size: int | None = None,
) -> Result:
    """Applies ``function`` to every task and stacks the results along a new leading axis.

    Args:
        function: takes one task's slice of each argument; returns tensors in any nesting.
        batched: tensors, or nested containers of tensors, with a leading task axis.
        batching: ``"loop"``: one task after the other. ``"vmap"``: all at once (dropout draws anew for every task).
        chunk_size: with ``"vmap"``, tasks at a time.

    Returns:
        What ``function`` returns, with a leading task axis.
    """
    if batching == "vmap":
        return vmap(function, randomness="different", chunk_size=chunk_size)(*batched)
    leaves, structure = pytree.tree_flatten(batched)
    # unbind has one backward for all tasks; indexing would write a whole zero tensor for each
    slices = zip(*(leaf.unbind(0) for leaf in leaves), strict=True)
    results = [function(*pytree.tree_unflatten(list(task), structure)) for task in slices]
    return pytree.tree_map(lambda *tasks: torch.stack(tasks), *results)  # type: ignore[no-any-return]
