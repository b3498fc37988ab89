"""Many tasks: one after the other, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import vmap
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs
from metatransfer.errors import UserError
from metatransfer.functional.meta.threads import in_threads, thread_count

Batching = Literal["loop", "threads", "vmap"]
"""One task after the other; as many at once as there are threads; all at once as one larger operation."""
Result = TypeVar("Result")
RECURRENT = (nn.RNNBase, nn.LSTMCell)
"""Layers that vmap has no rule for."""


def choose_batching(network: nn.Module, x: Inputs) -> Batching:
    """The faster way through the tasks.

    Threads win for convolutions on a CPU: weights that differ between tasks make a grouped convolution, which is slower
    than as many plain ones, and one small task does not keep all cores busy. vmap wins where launching operations costs
    more than computing them: small fully connected networks, and accelerators. Measured on two CPU cores: a sinusoid
    network with 25 tasks is several times faster with vmap; Conv4-64, 32 tasks 5-way 1-shot with 15 queries, takes 1.5
    times as long in a loop and 3 times as long with vmap as in threads, with 1 query 1.9 times as long in a loop and
    equally long with vmap. Accelerators were not measured. Recurrent layers and encoders of transformers cannot be
    mapped, and random numbers (dropout) keep their order only in a loop.

    Args:
        network: the network that adapts.
        x: its input, for the device.
    """
    layers = list(network.modules())
    if any(isinstance(layer, RECURRENT) or type(layer).__module__.startswith("transformers.") for layer in layers):
        return "loop"
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    if not convolves or pytree.tree_leaves(x)[0].device.type != "cpu":
        return "vmap"
    random = any(isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p for layer in layers)
    return "loop" if (random and network.training) or torch.get_num_threads() == 1 else "threads"


def check_batching(network: nn.Module, batching: str) -> None:
    """Raises an error if a network cannot be mapped.

    Args:
        network: the network that adapts.
        batching: ``"auto"`` or one of :data:`Batching`.

    Raises:
        UserError: recurrent layers under vmap.
    """
    for name, layer in network.named_modules():
        if batching == "vmap" and isinstance(layer, RECURRENT):
            raise UserError(
                f"batching='vmap' cannot map the recurrent layer '{name}' ({type(layer).__name__}) over tasks: choose "
                "'loop' or 'auto'."
            )


@contextmanager
def explains_vmap() -> Iterator[None]:
    """Rewords torch's errors about what vmap cannot do.

    Raises:
        UserError: the network does something that cannot be mapped over tasks.
        RuntimeError: anything else, as it came.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "vmap" not in reason and "batching rule" not in reason:
            raise
        raise UserError(
            f"this network cannot be mapped over tasks ({reason[:160].rstrip('.')}): choose batching='loop'."
        ) from error


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
        batching: ``"loop"``: one task after the other. ``"threads"``: as a loop, or, where nothing is to be
            differentiated, side by side. ``"vmap"``: all at once (dropout draws anew for every task).
        chunk_size: with ``"vmap"``, tasks at a time.

    Returns:
        What ``function`` returns, with a leading task axis.
    """
    if batching == "vmap":
        with explains_vmap():
            return vmap(function, randomness="different", chunk_size=chunk_size)(*batched)
    tasks = unstacked(batched)
    return joined(by_shares(lambda share: [function(*task) for task in share], tasks, batching), torch.stack)


def by_shares(function: Callable[[list[Any]], list[Result]], tasks: list[Any], batching: Batching) -> list[Result]:
    """Applies ``function`` to all tasks, in threads where that is asked for and no graph is wanted.

    Args:
        function: from some tasks to as many results.
        tasks: anything.
        batching: as in :func:`over_tasks`.

    Returns:
        The results, in the order of the tasks.
    """
    shares = _shares(tasks, batching == "threads" and not torch.is_grad_enabled())
    return [result for found in in_threads([partial(function, share) for share in shares]) for result in found]


def flattened(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:  # noqa: ANN401
    """The tensors of any nesting, and a function that nests as many others in the same way; ``None`` is left out."""
    leaves, structure = pytree.tree_flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]

    def nested(tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401
        found = dict(zip(places, tensors, strict=True))
        return pytree.tree_unflatten([found.get(place) for place in range(len(leaves))], structure)

    return [leaves[place] for place in places], nested


def unstacked(batched: Any, chunk_size: int | None = None) -> list[Any]:  # noqa: ANN401
    """Tensors in any nesting, taken apart along their leading axis.

    Args:
        batched: tensors ``(T, *shape)``; ``None`` stays in every part.
        chunk_size: rows of each part; if ``None`` a part is one row, without its axis.

    Returns:
        The parts, each nested as ``batched``.
    """
    leaves, nested = flattened(batched)
    # unbind has one backward for all tasks; indexing would write a whole zero tensor for each
    apart = [leaf.unbind(0) if chunk_size is None else leaf.split(chunk_size) for leaf in leaves]
    return [nested(part) for part in zip(*apart, strict=True)]


def joined(parts: list[Result], join: Callable[[list[Tensor]], Tensor]) -> Result:
    """Parts of the same nesting as one: each tensor by ``join`` (``torch.stack`` or ``torch.cat``)."""
    each = [flattened(part) for part in parts]
    columns = zip(*(leaves for leaves, _ in each), strict=True)
    return each[0][1]([join(list(column)) for column in columns])  # type: ignore[no-any-return]


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
    function: Callable[..., tuple[Tensor, Any]],
    *batched: Any,  # noqa: ANN401
    chunk_size: int | None,
    leaves: Sequence[Tensor],
    threads: bool = False,
) -> tuple[Tensor, Any]:
    """A mean loss of many tasks, differentiated part by part, so that the graph of one part exists at a time.

    Args:
        function: ``function(*part) -> (loss, outputs)``: the mean loss of some tasks, a scalar, and further results in
            any nesting, each with a leading task axis, which are not differentiated.
        batched: tensors in any nesting with a leading task axis.
        chunk_size: tasks of each part; ``None`` for all at once, differentiated later.
        leaves: all tensors that the loss is to be differentiated by.
        threads: several parts side by side, see :func:`metatransfer.functional.in_threads`.

    Returns:
        The loss of all tasks, and the outputs. The loss can be differentiated once, by ``leaves``.
    """
    first = flattened(batched)[0][0]
    tasks, kind = len(first), first.device.type
    # a scaler guards the outer gradient of a float16 pass, and the parts' gradients would be taken before it scales
    scaled = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if chunk_size is None or chunk_size >= tasks or not torch.is_grad_enabled() or scaled or not leaves:
        return function(*batched)
    shares = _shares(unstacked(batched, chunk_size), threads)
    found = in_threads([partial(_differentiated, function, share, leaves, tasks) for share in shares])
    loss = torch.stack([share.loss for share in found]).sum()
    gradients = [_sum(of_leaf) for of_leaf in zip(*(share.gradients for share in found), strict=True)]
    outputs = joined([outputs for share in found for outputs in share.outputs], torch.cat)
    return known_gradients(loss, gradients, leaves), outputs


class _Differentiated(NamedTuple):
    loss: Tensor
    outputs: list[Any]
    gradients: list[Tensor | None]


def _differentiated(
    function: Callable[..., tuple[Tensor, Any]], parts: list[Any], leaves: Sequence[Tensor], tasks: int
) -> _Differentiated:
    """The share of the mean over ``tasks`` that some parts have."""
    loss, outputs = torch.zeros((), device=flattened(parts[0])[0][0].device), []
    gradients: list[Tensor | None] = [None] * len(leaves)
    for part in parts:
        own, found = function(*part)
        own = own * (len(flattened(part)[0][0]) / tasks)
        more = torch.autograd.grad(own, leaves, allow_unused=True)
        gradients = [_sum(pair) for pair in zip(gradients, more, strict=True)]
        loss = loss + own.detach()
        outputs.append(pytree.tree_map_only(Tensor, Tensor.detach, found))
    return _Differentiated(loss, outputs, gradients)


def _shares(parts: list[Any], threads: bool) -> list[list[Any]]:
    """Parts divided among threads, each thread's in order."""
    number = thread_count(len(parts)) if threads else 1
    return [parts[index * len(parts) // number : (index + 1) * len(parts) // number] for index in range(number)]


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    found = [gradient for gradient in gradients if gradient is not None]
    # not in place: autograd may give one tensor for two leaves
    return reduce(torch.add, found) if found else None
