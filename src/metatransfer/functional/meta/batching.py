"""Applying a function to many tasks: one after the other, in threads, or all at once."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import vmap
from torch.utils import _pytree as pytree

from metatransfer.batches import Inputs
from metatransfer.errors import UserError, in_short
from metatransfer.functional.meta.threads import in_threads, thread_count

__all__ = ["Batching", "choose_batching", "known_gradients", "mean_over_parts", "over_tasks"]

Batching = Literal["loop", "threads", "vmap"]
"""One task after the other, one per thread, or all at once as one larger operation."""
Result = TypeVar("Result")
RECURRENT = (nn.RNNBase, nn.LSTMCell)
"""Layers that vmap does not support."""


def choose_batching(network: nn.Module, x: Inputs) -> Batching:
    """Chooses the fastest way to compute the tasks of a meta-batch.

    Threads are faster for convolutions on a CPU: with weights that differ between tasks, vmap computes a grouped
    convolution, which is slower than separate ones, and one small task does not keep all cores busy. vmap is faster
    where launching operations costs more than computing them: small fully connected networks, and accelerators (not
    measured). On two CPU cores Conv4-64 (32 tasks, 5-way 1-shot, 15 queries) takes 1.5 times as long in a loop and 3
    times as long with vmap as in threads. Recurrent layers and Hugging Face encoders cannot be mapped, and random
    numbers (dropout) keep their order only in a loop.

    Args:
        network: the network that adapts.
        x: its input; only the device matters.
    """
    layers = list(network.modules())
    if any(isinstance(layer, RECURRENT) or type(layer).__module__.startswith("transformers.") for layer in layers):
        return "loop"
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    if not convolves or pytree.tree_leaves(x)[0].device.type != "cpu":
        return "vmap"
    random = any(isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p for layer in layers)
    return "loop" if (random and network.training) or torch.get_num_threads() == 1 else "threads"


def unmappable(error: Exception) -> UserError:
    """What to say when ``vmap`` cannot compute a network."""
    return UserError(
        f"this network cannot be mapped over tasks ({in_short(error)}): set batching='loop' "
        "(--model.execution.batching loop)."
    )


def mapped(function: Callable[..., Result], chunk_size: int | None = None) -> Callable[..., Result]:
    """``torch.func.vmap`` of a function over the tasks, with a readable error if only ``vmap`` cannot compute it.

    Args:
        function: takes the slices of one task.
        chunk_size: number of tasks at a time.

    Raises:
        UserError: the function works for one task, but not under ``vmap``.
    """

    def run(*batched: Any) -> Result:  # noqa: ANN401
        try:
            return vmap(function, randomness="different", chunk_size=chunk_size)(*batched)
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # recomputing stops by an exception of another type
            function(*unstacked(batched)[0])  # an error of its own is clearer
            raise unmappable(error) from error

    return run


def over_tasks(
    function: Callable[..., Result],
    *batched: Any,  # noqa: ANN401
    batching: Batching = "loop",
    chunk_size: int | None = None,
) -> Result:
    """Applies ``function`` to every task and stacks the results along a new leading axis.

    Args:
        function: takes the slices of one task; returns tensors in any nesting.
        batched: tensors, or nested containers of tensors, with a leading task axis.
        batching: ``"loop"``: one task after the other. ``"threads"``: in parallel without gradients, otherwise a loop.
            ``"vmap"``: all at once (dropout differs between tasks).
        chunk_size: number of tasks at a time with ``"vmap"``.
    """
    tasks = unstacked(batched)
    if batching == "vmap" and len(tasks) > 1:
        return mapped(function, chunk_size)(*batched)
    return joined(by_shares(lambda share: [function(*task) for task in share], tasks, batching), torch.stack)


def by_shares(function: Callable[[list[Any]], list[Result]], tasks: list[Any], batching: Batching) -> list[Result]:
    """Applies ``function`` to lists of tasks, in threads if asked for and no graph is built; returns all results."""
    shares = _shares(tasks, batching == "threads" and not torch.is_grad_enabled())
    return [result for found in in_threads([partial(function, share) for share in shares]) for result in found]


def flattened(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:  # noqa: ANN401
    """The tensors of a nested container, without ``None``, and a function that nests other tensors in the same way."""
    leaves, structure = pytree.tree_flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]

    def nested(tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401
        found = dict(zip(places, tensors, strict=True))
        return pytree.tree_unflatten([found.get(place) for place in range(len(leaves))], structure)

    return [leaves[place] for place in places], nested


def unstacked(batched: Any, chunk_size: int | None = None) -> list[Any]:  # noqa: ANN401
    """Splits nested tensors along their leading axis, into rows or into chunks of ``chunk_size`` rows."""
    leaves, nested = flattened(batched)
    # unbind has one backward pass for all tasks; indexing would allocate a full zero tensor for each
    apart = [leaf.unbind(0) if chunk_size is None else torch.split(leaf, chunk_size) for leaf in leaves]
    return [nested(part) for part in zip(*apart, strict=True)]


def joined(parts: list[Result], join: Callable[[list[Tensor]], Tensor]) -> Result:
    """Joins parts of the same nesting, tensor by tensor, with ``torch.stack`` or ``torch.cat``."""
    each = [flattened(part) for part in parts]
    columns = zip(*(leaves for leaves, _ in each), strict=True)
    return each[0][1]([join(list(column)) for column in columns])  # type: ignore[no-any-return]


class _Known(torch.autograd.Function):
    """A loss whose gradients were computed before."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *leaves: Tensor) -> Tensor:  # noqa: ANN401
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return (None, None, *(None if gradient is None else gradient * scale for gradient in ctx.gradients))


def known_gradients(loss: Tensor, gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    """A loss that can be differentiated once, with gradients that are given instead of computed.

    Args:
        loss: a scalar.
        gradients: gradient of the loss for each leaf; ``None`` if the loss does not depend on it.
        leaves: the tensors to differentiate with respect to.
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
    """Mean loss of many tasks, differentiated part by part, so that memory holds the graph of one part at a time.

    Args:
        function: ``function(*part) -> (loss, outputs)``: the mean loss of some tasks, a scalar, and further results in
            any nesting with a leading task axis, which are detached.
        batched: tensors in any nesting with a leading task axis.
        chunk_size: number of tasks per part; ``None`` for all tasks in one graph.
        leaves: all tensors to differentiate with respect to.
        threads: compute several parts in parallel, see :func:`in_threads`.

    Returns:
        The loss of all tasks, and the outputs. The loss can be differentiated once, with respect to ``leaves``.
    """
    first = flattened(batched)[0][0]
    tasks, kind = len(first), first.device.type
    # in float16 a GradScaler scales the loss, but the gradients of the parts would be computed before that
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
    """The contribution of some parts to the mean over ``tasks``."""
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
    """Divides parts among threads, in order."""
    number = thread_count(len(parts)) if threads else 1
    return [parts[index * len(parts) // number : (index + 1) * len(parts) // number] for index in range(number)]


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    found = [gradient for gradient in gradients if gradient is not None]
    # not in place: autograd may give one tensor for two leaves
    return reduce(torch.add, found) if found else None
