"""Recurrent networks with states of any kind: the interface of networks with a memory, and the LSTM."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LSTM", "Recurrent", "lstm_step"]


class Recurrent(nn.Module, ABC):
    """A network that reads sequences and keeps a state.

    Attributes:
        out_features: size of the features of each position.
    """

    out_features: int

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Reads sequences ``(N, S, C)`` after a state, by default the initial one.

        Returns:
            Features ``(N, S, out_features)``, of which position ``t`` depends on no later one, and the state after
            them: tensors with a leading axis ``N``.
        """


class LSTM(Recurrent):
    """One layer of long short-term memory (Hochreiter, Schmidhuber 1997).

    Args:
        in_features: size of the input.
        hidden: size of the state, and of the features.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_features, hidden, batch_first=True)
        self.out_features = hidden

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``(N, S, C)`` to ``(N, S, hidden)``; the state is a pair of ``(N, hidden)``."""
        start = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        features, (hidden, cell) = self.lstm(x, start)
        return features, (hidden.squeeze(0), cell.squeeze(0))


def in_full_precision(linear: nn.Linear, x: Tensor) -> tuple[Tensor, torch.autocast]:
    """An input in the precision of the weights, and a context without autocast: rounding adds up over many steps."""
    return x.to(linear.weight.dtype), torch.autocast(x.device.type, enabled=False)


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    r"""One step of an LSTM from the sum of its projections.

    .. math:: c' = \sigma(f) \odot c + \sigma(i) \odot \tanh(g), \qquad h' = \sigma(o) \odot \tanh(c')

    Args:
        gates: ``(N, 4H)``, in the order ``i, f, o, g``, so that one call computes all sigmoids.
        cell: ``(N, H)``.

    Returns:
        The hidden state ``(N, H)`` and the cell ``(N, H)``.
    """
    size = cell.shape[-1]
    let_in, keep, let_out = gates[:, : 3 * size].sigmoid().chunk(3, -1)
    cell = torch.addcmul(keep * cell, let_in, gates[:, 3 * size :].tanh())
    return let_out * cell.tanh(), cell
