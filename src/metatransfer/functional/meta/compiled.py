"""A loss with its gradients as one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx.experimental.proxy_tensor import make_fx

from metatransfer.errors import UserError


class CompiledLoss:
    """Traces a loss and its gradients, inner loop and all, to single operations, and compiles them for one input size.

    A compiled function cannot be differentiated twice; here the outer gradient is part of what is compiled, so that
    nothing is differentiated afterwards. What Python decides is decided while tracing: another key, another trace.

    Args:
        function: ``function(params, *batched)`` returns the loss, a scalar, and further tensors.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self._known: dict[Hashable, _Graph] = {}

    def __call__(
        self, params: Mapping[str, Tensor], *batched: Tensor, key: Hashable = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """What the function returns, as constants, and the gradients of its loss.

        Args:
            params: what the loss is differentiated by, by name.
            batched: further arguments.
            key: all that the trace depends on besides sizes and types.

        Returns:
            The outputs, and a gradient for each parameter, ``None`` where the loss does not depend on it.

        Raises:
            UserError: no compiler works here.
        """
        leaves = [value.detach() for value in params.values()]
        sizes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in (*leaves, *batched))
        with torch.no_grad():
            graph = self._known.get((key, *params, sizes)) or self._trace(list(params), leaves, batched)
            self._known[key, *params, sizes] = graph
            try:
                found = graph.run(leaves, *batched)
            except BackendCompilerFailed as error:
                raise UserError(
                    "compile=True needs a working compiler (g++ for a CPU, Triton for a GPU), but it failed: "
                    f"{error.inner_exception}; install one, or leave compile out."
                ) from error
        gradients = iter(found[graph.outputs :])
        return found[: graph.outputs], [next(gradients) if reached else None for reached in graph.reached]

    def _trace(self, names: list[str], leaves: list[Tensor], batched: tuple[Tensor, ...]) -> _Graph:
        outputs, reached = 0, [True] * len(leaves)

        def whole(leaves: list[Tensor], *batched: Tensor) -> list[Tensor]:
            nonlocal outputs, reached
            with torch.enable_grad():
                leaves = [leaf.detach().requires_grad_() for leaf in leaves]
                found = self.function(dict(zip(names, leaves, strict=True)), *batched)
                gradients = torch.autograd.grad(found[0], leaves, allow_unused=True)
            outputs, reached = len(found), [gradient is not None for gradient in gradients]
            return [tensor.detach() for tensor in found] + [gradient for gradient in gradients if gradient is not None]

        graph = make_fx(whole)(leaves, *batched)
        return _Graph(torch.compile(graph, fullgraph=True, dynamic=False), outputs, reached)

    def __deepcopy__(self, memo: object) -> None:
        """A copied module compiles anew."""


class _Graph(NamedTuple):
    run: Callable[..., list[Tensor]]
    outputs: int
    reached: list[bool]
