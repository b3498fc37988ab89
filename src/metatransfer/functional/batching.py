"""Many tasks: one after the other, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import vmap
from torch.utils import _pytree as pytree

from metatransfer.errors import UserError

Batching = Literal["loop", "vmap"]
Result = TypeVar("Result")


def choose_batching(network: nn.Module, x: Tensor) -> Batching:
    """Which way through the tasks is faster.

    A loop wins for convolutions on a CPU: one task keeps it busy, and weights that differ between tasks make a grouped
    convolution, which is slower than as many plain ones. vmap wins where starting operations costs more than doing
    them: small fully connected networks, and accelerators. Measured on two CPU cores: a sinusoid network of 25 tasks is
    several times as fast by vmap, Conv4 of 32 tasks half as fast; on accelerators it was not measured. Recurrent layers
    cannot be mapped and are looped over everywhere.

    Args:
        network: the network that adapts.
        x: its input, for the device.
    """
    layers = list(network.modules())
    if any(isinstance(layer, nn.RNNBase) for layer in layers):
        return "loop"
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    return "loop" if convolves and x.device.type == "cpu" else "vmap"


def check_batching(network: nn.Module, batching: str) -> None:
    """Refuses to map what cannot be mapped.

    Args:
        network: the network that adapts.
        batching: ``"auto"``, ``"loop"`` or ``"vmap"``.

    Raises:
        UserError: recurrent layers under vmap.
    """
    for name, layer in network.named_modules():
        if batching == "vmap" and isinstance(layer, nn.RNNBase):
            raise UserError(
                f"batching='vmap' cannot map the recurrent layer '{name}' ({type(layer).__name__}) over tasks: choose "
                "'loop' or 'auto'."
            )


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
    results = [function(*task) for task in unstacked(batched)]
    return joined(results, torch.stack)


def unstacked(batched: Any, chunk_size: int | None = None) -> list[Any]:  # noqa: ANN401
    """Tensors in any nesting, taken apart along their leading axis.

    Args:
        batched: tensors ``(T, *shape)``.
        chunk_size: rows of each part; one, without its axis, where left out.

    Returns:
        As many parts as there are, each nested as ``batched``.
    """
    leaves, structure = pytree.tree_flatten(batched)
    # unbind has one backward for all tasks; indexing would write a whole zero tensor for each
    apart = [leaf.unbind(0) if chunk_size is None else leaf.split(chunk_size) for leaf in leaves]
    return [pytree.tree_unflatten(list(part), structure) for part in zip(*apart, strict=True)]


def joined(parts: list[Result], join: Callable[[list[Tensor]], Tensor]) -> Result:
    """Parts of the same nesting as one: each tensor by ``join`` (``torch.stack`` or ``torch.cat``)."""
    return pytree.tree_map(lambda *tensors: join(list(tensors)), *parts)  # type: ignore[no-any-return]


class _Known(torch.autograd.Function):
    """A loss whose gradients were taken before."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *leaves: Tensor) -> Tensor:  # noqa: ANN401
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return (None, None, *(None if gradient is None else gradient * scale for gradient in ctx.gradients))


def known_gradients(loss: Tensor, gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    """A loss whose gradients are given instead of computed.

    Args:
        loss: a scalar, the value.
        gradients: of the loss by each leaf; ``None`` where it does not depend on it.
        leaves: what it is to be differentiated by.

    Returns:
        The loss, which can be differentiated once.
    """
    known: Tensor = _Known.apply(loss, list(gradients), *leaves)
    return known


def mean_over_parts(
    function: Callable[..., tuple[Tensor, Tensor]], *batched: Tensor, chunk_size: int | None, leaves: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """A mean loss of many tasks, differentiated part by part, so that the graph of one part exists at a time.

    Args:
        function: ``function(*tensors) -> (loss, outputs)``: the mean loss of some tasks, a scalar, and what else they
            give, each with a leading task axis, as constants.
        batched: tensors with a leading task axis.
        chunk_size: tasks of each part; all at once, and differentiated later, where left out.
        leaves: all that the loss is to be differentiated by.

    Returns:
        The loss of all tasks, and the outputs. The loss can be differentiated once, by ``leaves``.
    """
    tasks = len(batched[0])
    kind = batched[0].device.type
    # a scaler guards the outer gradient of a float16 pass, and the parts' gradients would be taken before it scales
    scaled = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if chunk_size is None or chunk_size >= tasks or not torch.is_grad_enabled() or scaled or not leaves:
        return function(*batched)
    loss, outputs = torch.zeros((), device=batched[0].device), []
    gradients: list[Tensor | None] = [None] * len(leaves)
    for part in unstacked(batched, chunk_size):
        own, found = function(*part)
        own = own * (len(part[0]) / tasks)
        for index, gradient in enumerate(torch.autograd.grad(own, leaves, allow_unused=True)):
            if gradient is not None:
                total = gradients[index]
                gradients[index] = gradient if total is None else total.add_(gradient)
        loss = loss + own.detach()
        outputs.append(found.detach())
    return known_gradients(loss, gradients, leaves), torch.cat(outputs)
