"""A memory that is addressed by content and by location, with an LSTM as its controller."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatransfer.nn.blocks.recurrent import Recurrent, in_full_precision, lstm_step

__all__ = ["Addressing", "NeuralTuringMachine", "TuringState", "address"]

_EMPTY = 1e-6  # every number of the initial memory
_EPSILON = 1e-8


class TuringState(NamedTuple):
    """What the machine remembers after some inputs.

    Attributes:
        hidden: ``(N, H)``, with ``cell`` ``(N, H)`` the state of the controller.
        cell: see ``hidden``.
        read: ``(N, W)`` what was read last.
        memory: ``(N, slots, W)``.
        weights: ``(N, 2, slots)`` where it was read and written last; rows sum to 1.
    """

    hidden: Tensor
    cell: Tensor
    read: Tensor
    memory: Tensor
    weights: Tensor


class Addressing(NamedTuple):
    """What a head says about where to look.

    Attributes:
        key: ``(..., W)`` the content to look for.
        strength: ``(..., 1)`` not negative; how much a slot must resemble the key.
        gate: ``(..., 1)`` in [0, 1]; 1 for the place of the content, 0 for the previous place.
        shift: ``(..., 3)`` probabilities of a step back, none, and a step forward.
        sharpness: ``(..., 1)`` at least 1; the power that undoes the blur of the shift.
    """

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpness: Tensor


def address(memory: Tensor, previous: Tensor, head: Addressing) -> Tensor:
    r"""Where a head looks next (Graves, Wayne, Danihelka 2014, 1410.5401, equations 5 to 9).

    .. math:: w^c(i) &= \mathrm{softmax}_i\, \beta \cos(k, M(i)), \qquad w^g = g\,w^c + (1 - g)\, w_{t-1} \\
              \tilde w(i) &= \sum_{j=-1}^{1} s(j)\, w^g(i - j), \qquad
              w(i) = \tilde w(i)^\gamma \Big/ \sum_j \tilde w(j)^\gamma

    Slots form a ring.

    Args:
        memory: ``(N, slots, W)``.
        previous: ``(N, heads, slots)`` where the heads looked last.
        head: the outputs of the controller, with leading axes ``(N, heads)``.

    Returns:
        ``(N, heads, slots)``; rows sum to 1.
    """
    norms = head.key.norm(dim=-1, keepdim=True) * memory.norm(dim=-1).unsqueeze(1)
    content = (head.strength * (head.key @ memory.mT) / (norms + _EPSILON)).softmax(-1)
    mixed = torch.lerp(previous, content, head.gate)
    back, stay, forward = head.shift.unsqueeze(-2).unbind(-1)
    shifted = back * mixed.roll(-1, -1) + stay * mixed + forward * mixed.roll(1, -1)
    # a power has an infinite gradient at 0, which softmax reaches by underflow
    sharp = (shifted + _EPSILON) ** head.sharpness
    found: Tensor = sharp / sharp.sum(-1, keepdim=True)
    return found


class NeuralTuringMachine(Recurrent):
    r"""Neural Turing machine (Graves, Wayne, Danihelka 2014, 1410.5401) with one head that reads and one that writes.

    At each step the controller, an LSTM that also sees what was read last, says where both heads look, see
    :func:`address`, and what is erased and added where the second one looks:

    .. math:: M_t(i) = M_{t-1}(i) \odot (1 - w^w(i)\, e) + w^w(i)\, a, \qquad r_t = \sum_i w^r(i)\, M_t(i)

    The memory starts with the same small number everywhere, which trains most reliably (Collier, Beel 2018,
    1807.08518), and both heads at its first slot.

    Args:
        in_features: size of the input.
        hidden: size of the controller.
        slots: rows of the memory.
        width: size ``W`` of a row.
    """

    def __init__(self, in_features: int, hidden: int = 100, slots: int = 128, width: int = 20) -> None:
        super().__init__()
        self.hidden, self.slots, self.width = hidden, slots, width
        self.inputs = nn.Linear(in_features, 4 * hidden)
        self.recurrent = nn.Linear(hidden + width, 4 * hidden, bias=False)
        self.heads = nn.Linear(hidden, 2 * (width + 6))
        self.write = nn.Linear(hidden, 2 * width)
        self.out_features = hidden + width

    def initial(self, count: int, like: Tensor) -> TuringState:
        """The state before the first input, for each of some sequences."""
        zeros, memory = like.new_zeros, like.new_full((count, self.slots, self.width), _EMPTY)
        weights = zeros(count, 2, self.slots)
        weights[..., 0] = 1
        return TuringState(
            zeros(count, self.hidden), zeros(count, self.hidden), zeros(count, self.width), memory, weights
        )

    def forward(self, x: Tensor, state: TuringState | None = None) -> tuple[Tensor, TuringState]:
        """``(N, S, C)`` to the hidden states and what was read, ``(N, S, out_features)``."""
        x, full = in_full_precision(self.inputs, x)
        state, features = self.initial(len(x), x) if state is None else state, []
        with full:
            for projected in self.inputs(x).unbind(1):
                state = self.step(projected, state)
                features += [state.hidden, state.read]
        return torch.cat(features, -1).view(*x.shape[:2], self.out_features), state

    def places(self, x: Tensor) -> Tensor:
        """Where it reads and where it writes at each position of sequences ``(N, S, C)``: ``(N, S, 2, slots)``."""
        state, found = self.initial(len(x), x), []
        for projected in self.inputs(x).unbind(1):
            state = self.step(projected, state)
            found.append(state.weights)
        return torch.stack(found, 1)

    def step(self, projected: Tensor, state: TuringState) -> TuringState:
        """The state after one more input of each sequence, given by its projection ``(N, 4H)``."""
        recalled = torch.cat([state.hidden, state.read], -1)
        hidden, cell = lstm_step(projected + self.recurrent(recalled), state.cell)
        weights = address(state.memory, state.weights, self.addressing(hidden))
        erased, added = self.write(hidden).unsqueeze(1).chunk(2, -1)
        place = weights[:, 1].unsqueeze(-1)
        memory = torch.baddbmm(state.memory * (1 - place * erased.sigmoid()), place, added.tanh())
        read = (weights[:, :1] @ memory).squeeze(1)
        return TuringState(hidden, cell, read, memory, weights)

    def addressing(self, hidden: Tensor) -> Addressing:
        """What both heads say, from the hidden state ``(N, H)``."""
        found = self.heads(hidden).view(-1, 2, self.width + 6)
        key, strength, gate, shift, sharpness = found.split([self.width, 1, 1, 3, 1], -1)
        return Addressing(
            key.tanh(), F.softplus(strength), gate.sigmoid(), shift.softmax(-1), 1 + F.softplus(sharpness)
        )
