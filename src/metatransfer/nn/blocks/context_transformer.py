"""A transformer that reads a set of examples and answers queries about it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.checks import check_count
from metatransfer.errors import UserError


class ContextTransformer(nn.Module):
    """A transformer without positions whose tokens attend to a set of examples only (Nguyen, Grover 2022, 2207.04179).

    Examples attend to each other, and queries to the examples. The order of the examples therefore does not matter, and
    a query depends on no other query. Layers are normalised first (Xiong et al. 2020, 2002.04745).

    Args:
        width: size of a token, divisible by ``heads``.
        layers: number of layers.
        heads: number of attention heads.

    Raises:
        UserError: a number below 1, or a width that the heads do not divide.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        check_count(width=width, layers=layers, heads=heads)
        if width % heads:
            raise UserError(f"width must be divisible by heads, but got width={width} and heads={heads}.")
        self.layers = nn.ModuleList(ContextLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def read(self, examples: Tensor) -> list[Tensor]:
        """What each layer shows of the examples ``(..., S, width)`` to the queries: a tensor of this shape each."""
        seen = [examples]
        for layer in list(self.layers)[:-1]:
            seen.append(layer(seen[-1], seen[-1]))
        return seen

    def answer(self, seen: list[Tensor], queries: Tensor) -> Tensor:
        """Queries ``(..., Q, width)`` after attending to the examples, given by :meth:`read`."""
        for layer, examples in zip(self.layers, seen, strict=True):
            queries = layer(queries, examples)
        answers: Tensor = self.norm(queries)
        return answers


class ContextLayer(nn.Module):
    """A layer of :class:`ContextTransformer`: attention and a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, examples: Tensor) -> Tensor:
        """Tokens ``(..., N, width)`` after attending to the examples ``(..., S, width)``."""
        query = self.query(self.norm(tokens))
        key, value = self.key_value(self.norm(examples)).chunk(2, -1)
        # four axes, as ONNX knows no attention with others
        query, key, value = (self._split(part) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value).reshape(*tokens.shape[:-2], *query.shape[1:])
        tokens = tokens + self.out(mixed.transpose(-3, -2).flatten(-2))
        after: Tensor = tokens + self.perceptron(self.second_norm(tokens))
        return after

    def _split(self, tokens: Tensor) -> Tensor:
        """``(..., N, width)`` to ``(-1, heads, N, width / heads)``."""
        split = torch.unflatten(tokens, -1, (self.heads, -1)).transpose(-3, -2)
        return split.reshape(-1, *split.shape[-3:])
