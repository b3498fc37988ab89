"""A loss and its gradients as one compiled function."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metatransfer.errors import UserError
from metatransfer.functional.meta.batching import flattened

__all__ = ["CompiledLoss"]


class CompiledLoss:
    """Compiles a loss together with its gradients, inner loop included, for each size of the inputs.

    A compiled function cannot be differentiated twice, so the outer gradient is part of the compiled graph. Python code
    runs only while tracing; a new ``key`` gives a new trace.

    Args:
        function: ``function(params, *batched)`` returns the loss, a scalar, and further tensors in any nesting.
    """

    def __init__(self, function: Callable[..., tuple[Any, ...]]) -> None:
        self.function = function
        self._known: dict[Hashable, _Graph] = {}

    def __call__(
        self,
        params: Mapping[str, Tensor],
        *batched: Any,  # noqa: ANN401
        key: Hashable = None,
    ) -> tuple[tuple[Any, ...], list[Tensor | None]]:
        """Evaluates the function and the gradients of its loss.

        Args:
            params: the tensors to differentiate with respect to, by name.
            batched: further arguments, tensors in any nesting.
            key: everything else that the trace depends on, besides sizes and types.

        Returns:
            The detached results, and a gradient for each parameter (``None`` if the loss does not depend on it).

        Raises:
            UserError: there is no working compiler.
        """
        leaves = [value.detach() for value in params.values()]
        tensors, nested = flattened(batched)
        sizes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in (*leaves, *tensors))
        place = (key, *params, sizes, str(pytree.tree_structure(batched)))
        with torch.no_grad():
            if place not in self._known:
                self._known[place] = self._trace(list(params), leaves, tensors, nested)
            graph = self._known[place]
            try:
                found = graph.run(leaves, *tensors)
            except BackendCompilerFailed as error:
                raise UserError(
                    "compile=True needs a working compiler (g++ for a CPU, Triton for a GPU), but it failed: "
                    f"{error.inner_exception}; install one, or set compile to false."
                ) from error
        gradients = iter(found[graph.outputs :])
        return graph.nested(found[: graph.outputs]), [next(gradients) if there else None for there in graph.reached]

    def _trace(
        self, names: list[str], leaves: list[Tensor], tensors: list[Tensor], nested: Callable[[Sequence[Tensor]], Any]
    ) -> "_Graph":
        traced: list[Any] = []

        def whole(leaves: list[Tensor], *tensors: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                leaves = [leaf.detach().requires_grad_() for leaf in leaves]
                results = self.function(dict(zip(names, leaves, strict=True)), *nested(tensors))
                gradients = torch.autograd.grad(results[0], leaves, allow_unused=True)
            found, nest = flattened(results)
            traced[:] = [len(found), [gradient is not None for gradient in gradients], nest]
            return [tensor.detach() for tensor in found] + [gradient for gradient in gradients if gradient is not None]

        graph = make_fx(whole)(leaves, *tensors)
        return _Graph(torch.compile(graph, fullgraph=True, dynamic=False), *traced)

    def __deepcopy__(self, memo: object) -> "CompiledLoss | None":
        """A copied module compiles again."""
        return None


class _Graph(NamedTuple):
    run: Callable[..., list[Tensor]]
    outputs: int
    reached: list[bool]
    nested: Callable[[Sequence[Tensor]], Any]
